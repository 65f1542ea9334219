"""Whether reuse costs no more than its budget allows.

| figure | holds if |
|---|---|
| one needle, found | dense finds half or more, and reuse `recall` of what dense finds |
| named needles, found | the same share, or not significantly more are lost than gained (dense finds some only) |
| both, NLL of the passcode | it rises by `nll_increase` nats a token at most; for named ones, or within noise |
| questions, F1 | it is not below dense's 95% interval |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from vllm_redknot.evals.score import Score

SIGNIFICANT: Final = 0.05
LEAST_DENSE_RECALL: Final = 0.5
"""A model that does not find needles with everything computed cannot show that it finds them with less."""


@dataclass(frozen=True)
class Limits:
    """What reuse may cost: recall relative to dense, and nats per token."""

    recall: float = 0.95
    nll_increase: float = 0.05


@dataclass(frozen=True)
class Check:
    """One line of the budget. `limit` is in the metric's unit; whether reuse must be above or below it, `rule` says."""

    task: str
    metric: str
    rule: str
    dense: float
    reuse: float
    limit: float
    passed: bool

    @property
    def told(self) -> str:
        """What a failure says."""
        return (
            f"{self.task} {self.metric} is {self.reuse:.3f}, with everything computed {self.dense:.3f}, and the limit"
            f" {self.limit:.3f} ({self.rule})"
        )


def checks(scores: Sequence[Score], figures: Iterable[Mapping[str, Any]], limits: Limits) -> list[Check]:
    """The budget's lines. `figures`: as `reuse_scores.figures` makes them of `scores`."""
    totals = {(cell["task"], cell["metric"]): cell for cell in figures if cell["position"] is None}
    found: list[Check] = []
    for task in ("needle", "named"):
        pairs = [
            (score.stock or 0.0, score.redknot)
            for score in scores
            if (score.place.task, score.metric) == (task, "found")
        ]
        found += _recall(task, pairs, limits.recall)
        found.append(_nll(task, totals[task, "nll"], limits.nll_increase))
    for task in ("squad", "hotpotqa"):
        cell = totals[task, "f1"]
        dense, reuse = cell["dense"], cell["reuse"]["value"]
        rule = "at least the low end of dense's 95% interval"
        found.append(Check(task, "f1", rule, dense["value"], reuse, dense["low"], reuse >= dense["low"]))
    return found


def _recall(task: str, pairs: Sequence[tuple[float, float]], share: float) -> Iterator[Check]:
    dense, reuse = fmean(pair[0] for pair in pairs), fmean(pair[1] for pair in pairs)
    if task == "needle":
        rule = f"dense finds at least {LEAST_DENSE_RECALL:.0%}, else nothing is told"
        yield Check(task, "found", rule, dense, reuse, LEAST_DENSE_RECALL, dense >= LEAST_DENSE_RECALL)
        yield Check(
            *(task, "found", f"at least {share:.0%} of dense", dense, reuse, share * dense),
            passed=reuse >= share * dense,
        )
        return
    lost = sum(before > after for before, after in pairs)
    gained = sum(after > before for before, after in pairs)
    rule = f"at least {share:.0%} of dense, or not significantly more lost than gained"
    passed = reuse >= share * dense or chance(lost, gained) >= SIGNIFICANT
    yield Check(task, "found", rule, dense, reuse, share * dense, passed)


def _nll(task: str, cell: Mapping[str, Any], increase: float) -> Check:
    dense, reuse = cell["dense"]["value"], cell["reuse"]["value"]
    rule, passed = f"at most {increase:g} nats a token above dense", reuse - dense <= increase
    if task == "named":
        rule, passed = f"{rule}, or within noise", passed or cell["within_noise"] is True
    return Check(task, "nll", rule, dense, reuse, dense + increase, passed)


def chance(lost: int, gained: int) -> float:
    """One-sided sign test: how likely so many or more are lost where a changed answer is as likely gained as lost."""
    changed = lost + gained
    return sum(math.comb(changed, more) for more in range(lost, changed + 1)) / 2**changed
