"""One profiling run: score, choose, verify; every step is kept in the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tokenizers import Tokenizer

from vllm_redknot.evals.cases import Case
from vllm_redknot.evals.opening import opening
from vllm_redknot.evals.texts import Source
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.calibration import Mixture
from vllm_redknot.profiler.choose import (
    choose_by_fraction,
    choose_by_share,
    kept_share,
    steps_by_density,
)
from vllm_redknot.profiler.errors import ProfilerError
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.journal import Journal
from vllm_redknot.profiler.scores import HeadScores, Values, score_heads
from vllm_redknot.profiler.verify import Judge, Limits, Verdict

CHOICE: Final = ("weights", "judged_lengths", "judged_texts", "held_out")
"""Fields of a plan that its scores do not depend on."""
SHARE_TOLERANCE: Final = 0.02
"""How close a search for the least share of KV bytes comes."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and on what.

    Attributes:
        windows: that a local head may have, rising, in tokens.
        lengths, texts: of the cases that score heads: so many of each task at each length.
        points: on the line from the smallest windows to the dense model, per case.
        judged_lengths, judged_texts: the same of the held-out cases that verify.
        weights: of the tasks' values in the choice.
    """

    windows: tuple[int, ...] = (128, 256, 512, 768)
    sink: int = 4
    lengths: tuple[int, ...] = (1200, 1800)
    texts: int = 3
    points: int = 3
    judged_lengths: tuple[int, ...] = (1024, 2048)
    judged_texts: int = 4
    seed: int = 0
    calibration: Source = "calibration"
    held_out: Source = "held-out"
    weights: Mapping[str, float] = field(default_factory=lambda: {"needle": 1.0, "named": 1.0, "essays": 1.0})

    @property
    def passes(self) -> int:
        """Passes through the model that scoring takes."""
        return 3 * len(self.lengths) * self.texts * (1 + self.points)

    @property
    def judged_cases(self) -> int:
        return 3 * len(self.judged_lengths) * self.judged_texts

    def header(self) -> dict[str, Any]:
        """What tells this plan's scores from another's: how they are weighed and checked may change."""
        return {key: value for key, value in self.document().items() if key not in CHOICE}

    def document(self) -> dict[str, Any]:
        """The whole plan."""
        return {**asdict(self), "weights": dict(self.weights)}


@dataclass(frozen=True)
class Budget:
    """What may be kept: a share of the KV bytes at `context`, a fraction of global heads, or as little as passes."""

    kv_share: float | None = None
    global_fraction: float | None = None
    context: int = 8192


@dataclass(frozen=True)
class Outcome:
    """The profile, the scores that chose it, and how it did on the held-out cases."""

    profile: HeadProfile
    scores: HeadScores
    verdict: Verdict
    kv_share: float


class ProfilingRun:
    """The three steps, each of which goes on from the journal."""

    def __init__(
        self,
        model: HookedModel,
        tokenizer: Tokenizer,
        plan: Plan,
        journal: Journal,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """`advance` is called after each pass through the model."""
        self._model, self._tokenizer, self._plan = model, tokenizer, plan
        self._journal, self._advance = journal, advance
        self._layers = tuple(sorted(model.layers))

    def score(self) -> HeadScores:
        """Scores of every head over the calibration cases."""
        plan = self._plan
        points = [(index + 0.5) / plan.points for index in range(plan.points)]
        cases = self._cases(plan.calibration, plan.lengths, plan.texts, plan.seed)
        return score_heads(self._model, cases, plan.windows, plan.sink, points, self._journal, self._advance)

    def choose(self, scores: HeadScores, budget: Budget, limits: Limits) -> HeadProfile:
        """The profile that keeps the most value within the budget; without one, the smallest that holds the limits."""
        values = combined(scores, self._plan.weights)
        if budget.global_fraction is not None:
            return choose_by_fraction(
                values, self._layers, self._plan.windows[-1], self._plan.sink, budget.global_fraction
            )
        if budget.kv_share is not None:
            return self._by_share(values, budget.kv_share, budget.context)
        judge = self._judge(self._plan.calibration, self._plan.seed + 1)
        low, high = 0.0, 1.0
        # The dense model holds every limit; halve until the share that still does is known closely.
        found = self._by_share(values, high, budget.context)
        while high - low > SHARE_TOLERANCE:
            share = (low + high) / 2
            candidate = self._by_share(values, share, budget.context)
            if judge.compare(candidate, limits).failures:
                low = share
            else:
                found, high = candidate, share
        return found

    def verify(self, profile: HeadProfile, limits: Limits) -> Verdict:
        """The profile beside the dense model on cases that neither scored nor chose it."""
        return self._judge(self._plan.held_out, self._plan.seed + 2).compare(profile, limits)

    def _by_share(self, values: Values, share: float, context: int) -> HeadProfile:
        plan = self._plan
        steps = steps_by_density(values, (*plan.windows, None), plan.sink, context)
        profile = choose_by_share(
            steps, self._layers, len(values[0]), plan.windows[0], plan.sink, context, share
        )
        least = kept_share(profile, context)
        if share and not any(window is None for row in profile.window for window in row) and least > share:
            raise ProfilerError(
                f"{share:.1%} of the KV bytes at {context} tokens is less than the smallest windows take"
                f" ({least:.1%}): ask for more, or give smaller windows"
            )
        return profile

    def _judge(self, source: Source, seed: int) -> Judge:
        plan = self._plan
        cases = self._cases(source, plan.judged_lengths, plan.judged_texts, seed)
        return Judge(self._model, cases, self._journal, self._advance)

    def _cases(self, source: Source, lengths: tuple[int, ...], texts: int, seed: int) -> list[Case]:
        mixture = Mixture(source, lengths, texts, max(self._plan.windows), seed)
        start = opening(self._tokenizer)
        return [case.after(start) for case in mixture.cases(self._tokenizer)]


def combined(scores: HeadScores, weights: Mapping[str, float]) -> Values:
    """Values of all tasks, weighted and added: [L][H][steps]."""
    tasks = [(weights[task], values) for task, values in scores.values.items()]
    rows, heads, steps = _shape(tasks[0][1])
    return [
        [
            [sum(weight * values[row][head][step] for weight, values in tasks) for step in range(steps)]
            for head in range(heads)
        ]
        for row in range(rows)
    ]


def _shape(values: Values) -> tuple[int, int, int]:
    return len(values), len(values[0]), len(values[0][0])
