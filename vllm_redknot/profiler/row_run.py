"""One calibration of row skipping: search on the calibration texts, check on the held-out ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tokenizers import Tokenizer

from vllm_redknot.evals.cases import Case
from vllm_redknot.evals.opening import opening
from vllm_redknot.evals.texts import Source
from vllm_redknot.heads.model_shape import ModelShape
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.calibration import Mixture
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.journal import Journal
from vllm_redknot.profiler.quality import Answer
from vllm_redknot.profiler.row_judge import RowJudge, RowLimits, RowVerdict
from vllm_redknot.profiler.row_model import RowModel
from vllm_redknot.profiler.row_predictor import Probes, fit_probes
from vllm_redknot.profiler.row_search import LateSearch, with_sparse_ffn
from vllm_redknot.profiler.verify import Judge
from vllm_redknot.rows.savings import PrefillSavings, Savings
from vllm_redknot.rows.schedule import RowSchedule

SEARCH_SHARE: Final = 0.8
"""Of the limits on NLL and KL, so much may be used in the search: the best of many looks better than it is."""
SEARCH_NEEDLE_NLL: Final = 0.05
SEARCH_NEEDLE_KL: Final = 0.004
"""What a passcode token's mean NLL may rise by in the search, and its mean KL, in nats: recall over a handful of cases
is too coarse, and NLL rises for some answers and falls for others. With KL of 0.009 and more, SmolLM2 lost names."""
CHECK_ONLY: Final = ("judged_lengths", "judged_texts", "held_out")
"""Fields of a plan that the search does not depend on."""


@dataclass(frozen=True)
class RowPlan:
    """What is tried, and on what.

    Attributes:
        recents: numbers of last prompt tokens that skip nothing, to choose from.
        sink: first prompt tokens that skip nothing.
        lengths, texts: of the cases of the search: so many of each task at each length.
        judged_lengths, judged_texts: the same of the held-out cases that verify.
        predictors: whether FFN rows before the late layers are skipped too, by predictors fitted to these texts.
    """

    recents: tuple[int, ...] = (128, 256)
    sink: int = 4
    lengths: tuple[int, ...] = (1400, 2000)
    texts: int = 3
    judged_lengths: tuple[int, ...] = (1024, 2048)
    judged_texts: int = 4
    seed: int = 0
    calibration: Source = "calibration"
    held_out: Source = "held-out"
    predictors: bool = False

    @property
    def judged_cases(self) -> int:
        """Of the last check."""
        return 3 * len(self.judged_lengths) * self.judged_texts

    def header(self) -> dict[str, Any]:
        """What tells this plan's search from another's."""
        return {key: value for key, value in self.document().items() if key not in CHECK_ONLY}

    def document(self) -> dict[str, Any]:
        """The whole plan; a text of one's own by its digest."""
        sources = {key: _described(getattr(self, key)) for key in ("calibration", "held_out")}
        return {**asdict(self), **sources}


@dataclass(frozen=True)
class Tried:
    """One schedule of the search, with what it saves and how it did on the calibration cases."""

    schedule: RowSchedule
    savings: Savings
    verdict: RowVerdict

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "schedule": self.schedule.to_section(),
            "savings": self.savings.document(),
            **self.verdict.document(),
        }


@dataclass(frozen=True)
class RowOutcome:
    """The schedule, what it saves, how it did on the held-out cases, and all that was tried before."""

    schedule: RowSchedule
    savings: Savings
    verdict: RowVerdict
    dense: tuple[Answer, ...]
    tried: tuple[Tried, ...]


class RowChoice:
    """The search over schedules with one judge."""

    def __init__(self, judge: RowJudge, work: PrefillSavings, limits: RowLimits, depth: int) -> None:
        """`limits` are those of the last check; the search keeps a distance from them."""
        self._judge, self._work, self._depth = judge, work, depth
        self._limits = limits.stricter(SEARCH_SHARE, SEARCH_NEEDLE_NLL, SEARCH_NEEDLE_KL)
        self._tried: dict[str, Tried] = {}

    @property
    def tried(self) -> tuple[Tried, ...]:
        """All schedules that were tried, in order."""
        return tuple(self._tried.values())

    def choose(
        self, recents: Sequence[int], sink: int, probes: Callable[[RowSchedule], Probes]
    ) -> RowSchedule | None:
        """The schedule that saves most and holds; None if none does.

        Args:
            probes: predictors for the layers before a schedule's late ones.
        """
        late = LateSearch(self._depth, sink, recents, self._holds, self._late_saved).best()
        return None if late is None else with_sparse_ffn(late, probes(late), self._holds, self._saved)

    def _try(self, schedule: RowSchedule) -> Tried:
        digest = schedule.digest()
        if digest not in self._tried:
            verdict = self._judge.compare(schedule, self._limits)
            self._tried[digest] = Tried(schedule, self._work.saved(schedule, verdict.computed), verdict)
        return self._tried[digest]

    def _holds(self, schedule: RowSchedule) -> bool:
        return not self._try(schedule).verdict.failures

    def _saved(self, schedule: RowSchedule) -> float:
        return self._try(schedule).savings.flops

    def _late_saved(self, schedule: RowSchedule) -> float:
        return self._work.saved(schedule).flops


def _no_probes(late: RowSchedule) -> Probes:
    del late
    return {}


def _described(source: Source) -> str:
    if isinstance(source, str):
        return source
    return f"text {hashlib.sha256(' '.join(source).encode()).hexdigest()[:16]}"


class RowRun:
    """Search and check; each goes on from the journal."""

    def __init__(
        self,
        model: HookedModel,
        heads: HeadProfile,
        shape: ModelShape,
        tokenizer: Tokenizer,
        plan: RowPlan,
        journal: Journal,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            heads: the classes that rows are skipped beside.
            advance: called after each pass through the model.

        Raises:
            ProfilerError: The model's layers are not built as row skipping needs them.
        """
        self._hooked, self._model = model, RowModel(model)
        self._heads, self._shape, self._tokenizer, self._plan = heads, shape, tokenizer, plan
        self._journal, self._advance = journal, advance

    def choose(self, limits: RowLimits, context: int) -> tuple[RowSchedule | None, tuple[Tried, ...]]:
        """The schedule that saves most FLOPs of a prompt of `context` tokens, and all that was tried."""
        plan = self._plan
        cases = self._cases(plan.calibration, plan.lengths, plan.texts, plan.seed)
        judge = RowJudge(self._model, self._heads, cases, self._journal, self._advance)
        work = PrefillSavings(self._shape, self._heads, context)
        choice = RowChoice(judge, work, limits, self._model.depth)
        probes = self._probes if plan.predictors else _no_probes
        return choice.choose(plan.recents, plan.sink, probes), choice.tried

    def verify(
        self, schedule: RowSchedule, tried: tuple[Tried, ...], limits: RowLimits, context: int
    ) -> RowOutcome:
        """Heads and rows together beside the heads alone, and beside the dense model, on the held-out cases."""
        plan = self._plan
        cases = self._cases(plan.held_out, plan.judged_lengths, plan.judged_texts, plan.seed + 2)
        dense = Judge(self._hooked, cases, self._journal, self._advance).answers(None)
        judge = RowJudge(self._model, self._heads, cases, self._journal, self._advance)
        verdict = judge.compare(schedule, limits)
        savings = PrefillSavings(self._shape, self._heads, context).saved(schedule, verdict.computed)
        return RowOutcome(schedule, savings, verdict, tuple(dense), tried)

    def _probes(self, late: RowSchedule) -> Probes:
        plan = self._plan
        # Other texts than those that judge.
        cases = self._cases(plan.calibration, plan.lengths, plan.texts, plan.seed + 1)
        return fit_probes(self._model, self._heads, cases, late, self._journal, self._advance)

    def _cases(self, source: Source, lengths: tuple[int, ...], texts: int, seed: int) -> list[Case]:
        windows = [window for row in self._heads.window for window in row if window is not None]
        # Out of every window and among the tokens that skip: what the schedule is to prove itself on.
        mixture = Mixture(source, lengths, texts, max([*self._plan.recents, *windows]), seed)
        start = opening(self._tokenizer)
        return [case.after(start) for case in mixture.cases(self._tokenizer)]
