"""Whether a profile answers as the dense model does, on cases that did not choose it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

from vllm_redknot.evals.cases import Case
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.hooked import HookedModel, LayerAttention
from vllm_redknot.profiler.journal import Journal
from vllm_redknot.profiler.masked import ProfiledAttention, dense_attention
from vllm_redknot.profiler.quality import Answer, answers

SIGNIFICANT: Final = 0.05


@dataclass(frozen=True)
class Limits:
    """What a profile may cost: recall relative to dense, and nats per essay token.

    Single needles must reach the recall. Dense itself finds only some of the named ones, so that a few cases more or
    less are chance: there a profile fails if it also loses significantly more cases than it gains (`SIGNIFICANT`).
    """

    recall: float = 0.95
    nll_increase: float = 0.05


@dataclass(frozen=True)
class Comparison:
    """One task at one length: `n` cases, answers found and mean NLL with the dense model and with the profile."""

    task: str
    length: int
    n: int
    dense_found: int
    found: int
    dense_nll: float
    nll: float
    lost: int
    gained: int


@dataclass(frozen=True)
class Verdict:
    """All comparisons, and what of the limits does not hold (nothing: the profile passes)."""

    comparisons: tuple[Comparison, ...]
    failures: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return {"comparisons": [asdict(row) for row in self.comparisons], "failures": list(self.failures)}


class Judge:
    """Compares profiles with the dense model on the same cases; the dense answers are computed once."""

    def __init__(
        self,
        model: HookedModel,
        cases: Sequence[Case],
        journal: Journal,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        self._model, self._cases = model, cases
        self._journal, self._advance = journal, advance

    def answers(self, profile: HeadProfile | None) -> list[Answer]:
        """The model's answers under a profile, or its own."""
        attention: LayerAttention = dense_attention if profile is None else ProfiledAttention(profile)
        who = "dense" if profile is None else profile.fingerprint()
        found = []
        for case in self._cases:
            key = f"answer {who} {case.fingerprint()}"
            kept = self._journal.get(key)
            if kept is None:
                (answer,) = answers(self._model, attention, [case])
                kept = asdict(answer)
                self._journal.add(key, kept)
            found.append(Answer(**kept))
            self._advance()
        return found

    def compare(self, profile: HeadProfile, limits: Limits) -> Verdict:
        """Comparisons per task and length, and the limits a profile breaks over all lengths of a task."""
        pairs = list(zip(self.answers(None), self.answers(profile), strict=True))
        rows = compare_pairs(pairs)
        return Verdict(rows, tuple(failures_of(rows, limits)))


def compare_pairs(pairs: Sequence[tuple[Answer, Answer]]) -> tuple[Comparison, ...]:
    """Of a baseline's and a candidate's answers to the same cases, by task and length."""
    return tuple(
        _compare(task, length, [pair for pair in pairs if (pair[0].task, pair[0].length) == (task, length)])
        for task, length in dict.fromkeys((before.task, before.length) for before, _ in pairs)
    )


def _compare(task: str, length: int, pairs: Sequence[tuple[Answer, Answer]]) -> Comparison:
    dense, ours = zip(*pairs, strict=True)
    return Comparison(
        task,
        length,
        len(pairs),
        sum(answer.found for answer in dense),
        sum(answer.found for answer in ours),
        fmean(answer.nll for answer in dense),
        fmean(answer.nll for answer in ours),
        sum(before.found and not after.found for before, after in pairs),
        sum(after.found and not before.found for before, after in pairs),
    )


def _by_more_than_chance(rows: Sequence[Comparison]) -> bool:
    """One-sided sign test: a case whose answer changes is as likely gained as lost."""
    lost = sum(row.lost for row in rows)
    changed = lost + sum(row.gained for row in rows)
    chance = sum(math.comb(changed, more) for more in range(lost, changed + 1)) / 2**changed
    return chance < SIGNIFICANT


def failures_of(rows: Sequence[Comparison], limits: Limits, baseline: str = "dense finds") -> list[str]:
    """The limits that do not hold over all lengths of a task, against the baseline that the `dense_` fields hold."""
    failures = []
    for task in dict.fromkeys(row.task for row in rows):
        mine = [row for row in rows if row.task == task]
        if task == "essays":
            increase = fmean(row.nll - row.dense_nll for row in mine)
            if increase > limits.nll_increase:
                failures.append(
                    f"essays: NLL rises by {increase:.3f} nats a token; allowed: {limits.nll_increase}"
                )
            continue
        found, dense = sum(row.found for row in mine), sum(row.dense_found for row in mine)
        if found < limits.recall * dense and (task == "needle" or _by_more_than_chance(mine)):
            failures.append(
                f"{task}: {found} answers found where {baseline} {dense}; asked: {limits.recall:.0%}"
            )
    return failures
