"""What skipping rows costs in quality, against the same head classes without it, on the same cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Final

import torch
from torch.nn.functional import cross_entropy, kl_div

from vllm_redknot.evals.cases import Case
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.journal import Journal
from vllm_redknot.profiler.masked import ProfiledAttention
from vllm_redknot.profiler.quality import Answer
from vllm_redknot.profiler.row_model import PassResult, RowModel, Rows, rows_of
from vllm_redknot.profiler.verify import Comparison, Limits, compare_pairs, failures_of
from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.rows.sparse_ffn import Mass

KEPT_STATES: Final = 4
"""A pass under a schedule begins at one of so many evenly spaced layers: the states before them are kept."""


@dataclass(frozen=True)
class RowLimits:
    """What skipping rows may cost beside the head classes alone.

    Attributes:
        recall, nll_increase: as in `verify.Limits`, with heads alone in the place of the dense model.
        kl: KL(heads alone || with rows) of essay tokens, mean, in nats.
        needle_nll, needle_kl: rise of the mean NLL of passcode tokens, and their mean KL, of each kind of needle; for a
            search: recall over a handful of cases is too coarse there. None, as in the last check: no limit.
    """

    recall: float = 0.95
    nll_increase: float = 0.05
    kl: float = 0.1
    needle_nll: float | None = None
    needle_kl: float | None = None

    def stricter(self, share: float, needle_nll: float, needle_kl: float) -> RowLimits:
        """Limits for a search: the best of many candidates looks better than it is."""
        return replace(
            self,
            nll_increase=share * self.nll_increase,
            kl=share * self.kl,
            needle_nll=needle_nll,
            needle_kl=needle_kl,
        )


@dataclass(frozen=True)
class RowAnswer(Answer):
    """Also the divergence from heads alone over the answer's tokens, and the share of the rows that may skip which
    each layer of `sparse_ffn` computed."""

    kl: float = 0.0
    computed: Mapping[str, float] | None = None


@dataclass(frozen=True)
class RowComparison:
    """One task at one length; `beside` has heads alone in the place of the dense model."""

    beside: Comparison
    kl: float

    def document(self) -> dict[str, Any]:
        """Plain values."""
        values = {key.replace("dense_", "heads_"): value for key, value in asdict(self.beside).items()}
        return {**values, "kl": self.kl}


@dataclass(frozen=True)
class RowVerdict:
    """All comparisons, what of the limits does not hold, and per layer of `sparse_ffn` the mean share computed."""

    comparisons: tuple[RowComparison, ...]
    failures: tuple[str, ...]
    computed: Mapping[int, float]

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "comparisons": [row.document() for row in self.comparisons],
            "failures": list(self.failures),
        }


@dataclass(frozen=True)
class _Reference:
    """Heads alone, of one case: states to begin at, and log-probabilities of the answer's tokens in fp16."""

    states: dict[int, torch.Tensor]
    logprobs: torch.Tensor


class RowJudge:
    """Answers cases under schedules. What it found is in the journal, what a pass can begin from in memory."""

    def __init__(
        self,
        model: RowModel,
        heads: HeadProfile,
        cases: Sequence[Case],
        journal: Journal,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """`advance` is called after each pass, also one that the journal has."""
        self._model, self._cases = model, cases
        self._heads, self._fingerprint = ProfiledAttention(heads), heads.fingerprint()
        self._journal, self._advance = journal, advance
        self._references: dict[int, _Reference] = {}

    def answers(self, schedule: RowSchedule | None) -> list[RowAnswer]:
        """The model's answers under a schedule, or with the head classes alone."""
        who = "none" if schedule is None else schedule.digest()
        found = []
        for index, case in enumerate(self._cases):
            key = f"rows {who} {self._fingerprint} {case.fingerprint()}"
            kept = self._journal.get(key)
            if kept is None:
                kept = asdict(self._heads_alone(index) if schedule is None else self._answer(index, schedule))
                self._journal.add(key, kept)
            found.append(RowAnswer(**kept))
            self._advance()
        return found

    def compare(self, schedule: RowSchedule, limits: RowLimits) -> RowVerdict:
        """A schedule beside the heads alone."""
        before, after = self.answers(None), self.answers(schedule)
        rows = tuple(
            RowComparison(row, fmean(a.kl for a in after if (a.task, a.length) == (row.task, row.length)))
            for row in compare_pairs(list(zip(before, after, strict=True)))
        )
        shares = [answer.computed for answer in after if answer.computed]
        layers = shares[0] if shares else ()
        computed = {int(layer): fmean(share[layer] for share in shares) for layer in layers}
        return RowVerdict(rows, tuple(row_failures(rows, limits)), computed)

    def _heads_alone(self, index: int) -> RowAnswer:
        case = self._cases[index]
        layers = [self._model.depth * part // KEPT_STATES for part in range(1, KEPT_STATES)]
        result = self._model.run(_tokens(case), len(case.answer), self._heads, keep=layers)
        self._references[index] = _Reference(result.states, result.logits.log_softmax(-1).half())
        return RowAnswer(**asdict(scored(case, result.logits)))

    def _answer(self, index: int, schedule: RowSchedule) -> RowAnswer:
        case = self._cases[index]
        rows = rows_of(schedule, len(case.prompt), len(_tokens(case)), self._model.depth)
        first = min((*_sparse_layers(schedule), rows.ffn_from, rows.attention_from))
        result = self.pass_under(index, rows, first)
        computed = {str(layer): share for layer, share in result.computed.items()}
        return replace(
            RowAnswer(**asdict(scored(case, result.logits))),
            kl=self.divergence(index, result.logits),
            computed=computed or None,
        )

    def pass_under(self, index: int, rows: Rows, first: int) -> PassResult:
        """One case with these rows, none of which skips before layer `first`."""
        case = self._cases[index]
        states = self._reference(index).states
        begin = max((layer for layer in states if layer <= first), default=0)
        return self._model.run(
            _tokens(case),
            len(case.answer),
            self._heads,
            rows,
            begin=(begin, states[begin]) if begin else None,
        )

    def divergence(self, index: int, logits: torch.Tensor) -> float:
        """KL(heads alone || these logits) of a case, mean over the answer's tokens, in nats."""
        alone = self._reference(index).logprobs.float().log_softmax(-1)
        ours = logits.log_softmax(-1)
        return max(0.0, float(kl_div(ours, alone, log_target=True, reduction="batchmean")))

    def _reference(self, index: int) -> _Reference:
        if index not in self._references:
            self._heads_alone(index)
        return self._references[index]


def scored(case: Case, logits: torch.Tensor) -> Answer:
    """How a case was answered by logits [answer, vocabulary] before each of the answer's tokens."""
    targets = torch.tensor(case.answer, device=logits.device)
    nll = float(cross_entropy(logits, targets))
    return Answer(case.task, len(case.prompt), nll, bool((logits.argmax(-1) == targets).all()))


def row_failures(rows: Sequence[RowComparison], limits: RowLimits) -> list[str]:
    """The limits that do not hold, each over all lengths of a task."""
    recall = Limits(limits.recall, math.inf)
    failures = failures_of([row.beside for row in rows], recall, "heads alone find")
    for task in dict.fromkeys(row.beside.task for row in rows):
        mine = [row for row in rows if row.beside.task == task]
        is_essay = task == "essays"
        rise = fmean(row.beside.nll - row.beside.dense_nll for row in mine)
        for loss, value, limit in (
            ("NLL rises by", rise, limits.nll_increase if is_essay else limits.needle_nll),
            (
                "KL from heads alone is",
                fmean(row.kl for row in mine),
                limits.kl if is_essay else limits.needle_kl,
            ),
        ):
            if limit is not None and value > limit:
                failures.append(f"{task}: {loss} {value:.3f} nats a token; allowed: {limit:.3g}")
    return failures


def _tokens(case: Case) -> tuple[int, ...]:
    return case.prompt + case.answer[:-1]


def _sparse_layers(schedule: RowSchedule) -> tuple[int, ...]:
    sparse = schedule.sparse_ffn
    if sparse is None:
        return ()
    return (sparse.start,) if isinstance(sparse, Mass) else sparse.layers
