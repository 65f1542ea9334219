"""What a row schedule saves in the prefill of one request: rows, and FLOPs.

FLOPs are those of `prefill_flops`. A token that skips attention pays for K and V alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from vllm_redknot.heads.model_shape import ModelShape
from vllm_redknot.heads.profile import HeadProfile, all_global
from vllm_redknot.rows.prefill_flops import NOTHING, DecoderSizes, prefill_work
from vllm_redknot.rows.schedule import RowSchedule


@dataclass(frozen=True)
class Savings:
    """Shares in [0, 1] of one prompt of `context` tokens: rows are tokens x layers.

    `flops` is what the schedule saves of the work that the head classes leave; `flops_of_dense` what both save of the
    dense model's.
    """

    context: int
    attention_rows: float
    ffn_rows: float
    flops: float
    flops_of_dense: float

    def document(self) -> dict[str, float]:
        """As JSON has it, to four decimals."""
        return {key: round(value, 4) for key, value in asdict(self).items()}


class PrefillSavings:
    """FLOPs of a prompt of `context` tokens with these head classes, under any schedule."""

    def __init__(self, shape: ModelShape, heads: HeadProfile, context: int) -> None:
        """
        Raises:
            ValueError: The shape states no `intermediate_size`.
        """
        if shape.intermediate_size is None:
            raise ValueError("the model states no intermediate_size: what its FFN costs is not known")
        self.context = context
        self._shape, self._heads = shape, heads
        self._sizes = DecoderSizes(heads.num_layers, shape.hidden_size, shape.intermediate_size)
        self._alone = self._flops(heads, None, NOTHING)
        self._dense = self._flops(all_global(heads.layer_ids, heads.num_kv_heads), None, NOTHING)

    def saved(self, schedule: RowSchedule, computed: Mapping[int, float] = NOTHING) -> Savings:
        """
        Args:
            schedule: what is skipped.
            computed: layer of `sparse_ffn` -> share of the rows that may skip which it computes; 1 where not given.
        """
        layers, tokens = self._heads.layer_ids, self.context
        low, high = schedule.skippable(tokens)
        may_skip = max(high - low, 0) / (tokens * len(layers))
        flops = self._flops(self._heads, schedule, computed)
        return Savings(
            tokens,
            may_skip * sum(schedule.skips_attention(layer) for layer in layers),
            may_skip * sum(_skipped_ffn(schedule, layer, computed) for layer in layers),
            1 - flops / self._alone,
            1 - flops / self._dense,
        )

    def _flops(self, heads: HeadProfile, schedule: RowSchedule | None, computed: Mapping[int, float]) -> int:
        shape = self._shape
        return prefill_work(
            heads,
            shape.num_attention_heads,
            shape.head_dim,
            self._sizes,
            1,
            self.context,
            schedule,
            computed,
        ).total


def _skipped_ffn(schedule: RowSchedule, layer: int, computed: Mapping[int, float]) -> float:
    """Share of the rows that may skip which run no FFN in a layer."""
    return 1.0 if schedule.skips_ffn(layer) else 1.0 - computed.get(layer, 1.0)
