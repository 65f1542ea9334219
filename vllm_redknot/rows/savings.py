"""What a row schedule saves in the prefill of one request: rows, and FLOPs.

FLOPs are counted as RedKnot's benchmark scripts do: per token and layer 2 E (Hq + 2 H) D for Q, K and V, 2 E Hq D for
the output projection and 6 E I for the feed-forward network; 4 D per query head and visible pair. Embeddings, norms,
softmax and the output layer are left out. A token that skips attention pays for K and V alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from vllm_redknot.cli.flops import visible_pairs
from vllm_redknot.heads.model_shape import ModelShape
from vllm_redknot.heads.profile import HeadProfile, all_global
from vllm_redknot.rows.schedule import RowSchedule

NOTHING: Mapping[int, float] = {}


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


class PrefillWork:
    """FLOPs of a prompt of `context` tokens with these head classes, under any schedule."""

    def __init__(self, shape: ModelShape, heads: HeadProfile, context: int) -> None:
        """
        Raises:
            ValueError: The shape states no `intermediate_size`.
        """
        if shape.intermediate_size is None:
            raise ValueError("the model states no intermediate_size: what its FFN costs is not known")
        self.context = context
        self._heads = heads
        width = shape.hidden_size * shape.head_dim
        self._key_value = 4 * width * shape.num_kv_heads
        self._query_output = 4 * width * shape.num_attention_heads
        self._ffn = 6 * shape.hidden_size * shape.intermediate_size
        self._pair = 4 * shape.head_dim * (shape.num_attention_heads // shape.num_kv_heads)
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

    def _flops(
        self, heads: HeadProfile, schedule: RowSchedule | None, computed: Mapping[int, float]
    ) -> float:
        tokens = self.context
        low, high = schedule.skippable(tokens) if schedule else (tokens, tokens)
        total = 0.0
        for layer in heads.layer_ids:
            ffn_rows, attending = float(tokens), tokens
            begin, end = tokens, tokens
            if schedule is not None:
                ffn_rows -= _skipped_ffn(schedule, layer, computed) * (high - low)
                if schedule.skips_attention(layer):
                    begin, end = min(low, tokens), min(high, tokens)
                    attending -= end - begin
            total += tokens * self._key_value + attending * self._query_output + ffn_rows * self._ffn
            for head in range(heads.num_kv_heads):
                seen = heads.visibility(layer, head)
                pairs = visible_pairs(seen, tokens) - (visible_pairs(seen, end) - visible_pairs(seen, begin))
                total += pairs * self._pair
        return total


def _skipped_ffn(schedule: RowSchedule, layer: int, computed: Mapping[int, float]) -> float:
    """Share of the rows that may skip which run no FFN in a layer."""
    return 1.0 if schedule.skips_ffn(layer) else 1.0 - computed.get(layer, 1.0)
