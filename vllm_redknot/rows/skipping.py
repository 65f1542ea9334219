"""Row skipping of one loaded model: from the prompts of a step to the plan its layers follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm.forward_context import get_forward_context

from vllm_redknot.rows.counters import ATTENTION, FFN, RowCounters
from vllm_redknot.rows.metrics import RowMetricFile
from vllm_redknot.rows.plan import RowPlan, split_step

if TYPE_CHECKING:
    from vllm_redknot.attention.step import Step
    from vllm_redknot.rows.schedule import RowSchedule


class RowSkipping:
    """One per loaded model and process that skips rows."""

    def __init__(
        self, schedule: RowSchedule, is_compiled: bool, metrics: RowMetricFile | None = None
    ) -> None:
        self.schedule = schedule
        self.is_compiled = is_compiled
        self.counters = RowCounters(metrics)
        self.installed = False
        """Whether the model's layers follow the plans. The engine must not start before."""
        self.layers: dict[str, dict[int, bool]] = {ATTENTION: {}, FFN: {}}
        """Kind -> layer -> whether skipping rows are skipped there; without the layers of `sparse_ffn`."""
        self._prompt_lens: Sequence[int] = ()

    def expect(self, prompt_lens: Sequence[int]) -> None:
        """Tell the prompts of the step that is about to begin.

        Args:
            prompt_lens: tokens of each request's prompt, in the step's order, 0 for a request that skips nothing;
                empty if no request of the step skips.
        """
        self._prompt_lens = prompt_lens

    def plan(self, step: Step, common: Any) -> RowPlan | None:
        """The plan of the step that begins; None if all its rows run everything, as in decode and short prompts.

        Args:
            step: the step, whose tables need not be filled yet.
            common: vLLM's `CommonAttentionMetadata`.
        """
        prompt_lens, self._prompt_lens = self._prompt_lens, ()
        if not prompt_lens:
            return None
        kept, skipping = split_step(
            common.query_start_loc_cpu.tolist(),
            common.seq_lens_cpu_upper_bound.tolist(),
            prompt_lens,
            self.schedule,
        )
        if not skipping:
            return None
        plan = RowPlan(step, kept, skipping)
        self._count(plan)
        return plan

    def _count(self, plan: RowPlan) -> None:
        """Everything but the layers of `sparse_ffn`, which count what they find."""
        for kind, layers in self.layers.items():
            for layer, is_late in layers.items():
                skipped = plan.num_skipping if is_late else 0
                self.counters.add(kind, layer, plan.num_kept + plan.num_skipping - skipped, skipped)
        self.counters.log()


def plan_of(layer_name: str) -> RowPlan | None:
    """The plan of the step that is running; None if every row runs everything, and while profiling.

    Args:
        layer_name: any attention layer of the model.
    """
    metadata = get_forward_context().attn_metadata
    step = metadata.get(layer_name) if isinstance(metadata, Mapping) else None
    plan: RowPlan | None = getattr(step, "rows", None)
    return plan
