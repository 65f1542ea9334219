"""Prefill arithmetic of a whole decoder, with rows skipped: projections, feed-forward networks and attention.

By the accounting of RedKnot's benchmark scripts, per token and layer: 2H(Hq + 2Hkv)D for the query, key and value
projections, 2HqDH for the output projection, 6HI for a gated feed-forward network, and 4D for each pair of query head
and visible key. Embeddings, norms and the logits are left out, and so is what layers without KV heads do instead of
attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vllm_redknot.heads.flops import attention_work, visible_pairs
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.rows.schedule import RowSchedule

NOTHING: Final[Mapping[int, float]] = {}


@dataclass(frozen=True)
class DecoderSizes:
    """A decoder without its attention heads: `layers` of all kinds, width, and width of the FFN, of all ranks."""

    layers: int
    hidden_size: int
    ffn_size: int


@dataclass(frozen=True)
class PrefillWork:
    """FLOPs of one rank for the prefill of one prompt."""

    projections: int
    ffn: int
    attention: int

    @property
    def total(self) -> int:
        """Of all three."""
        return self.projections + self.ffn + self.attention


@dataclass(frozen=True)
class RowsSkipped:
    """Shares of a prompt's rows (tokens x layers) that late layers skip."""

    attention: float
    ffn: float


def rows_skipped(
    rows: RowSchedule,
    attention_layers: tuple[int, ...],
    layers: int,
    context: int,
    computed: Mapping[int, float] = NOTHING,
) -> RowsSkipped:
    """For a prompt of `context` tokens; `computed` as in `prefill_work`."""
    start, stop = rows.skippable(context)
    late_attention = sum(rows.skips_attention(layer) for layer in attention_layers)
    late_ffn = sum(
        1.0 if rows.skips_ffn(layer) else 1.0 - computed.get(layer, 1.0) for layer in range(layers)
    )
    return RowsSkipped(
        late_attention * (stop - start) / (len(attention_layers) * context),
        late_ffn * (stop - start) / (layers * context),
    )


def skipped_attention(
    profile: HeadProfile, query_heads: int, head_dim: int, context: int, rows: RowSchedule | None
) -> int:
    """FLOPs of a prefill's attention that late layers leave out: those of the queries that skip."""
    if rows is None:
        return 0
    start, stop = rows.skippable(context)
    each = 4 * head_dim * (query_heads // profile.num_kv_heads)
    return each * sum(
        visible_pairs(seen, stop) - visible_pairs(seen, start)
        for layer in profile.layer_ids
        if rows.skips_attention(layer)
        for seen in (profile.visibility(layer, head) for head in range(profile.num_kv_heads))
    )


def prefill_work(
    profile: HeadProfile,
    query_heads: int,
    head_dim: int,
    sizes: DecoderSizes,
    tp_size: int,
    context: int,
    rows: RowSchedule | None,
    computed: Mapping[int, float] = NOTHING,
) -> PrefillWork:
    """The prefill of `context` tokens on one rank.

    Args:
        profile: of the rank, its layers being those with KV heads.
        query_heads: of the rank.
        sizes: of all ranks.
        rows: what is skipped; None computes every row.
        computed: layer of `sparse_ffn` -> share of the rows that may skip which it computes, which depends on the text;
            1 where not given.
    """
    width, kv_heads = sizes.hidden_size, profile.num_kv_heads
    key_value = 2 * width * 2 * kv_heads * head_dim
    query_output = 2 * width * 2 * query_heads * head_dim
    ffn = 6 * width * sizes.ffn_size // tp_size
    start, stop = (0, 0) if rows is None else rows.skippable(context)
    kept = context - (stop - start)
    late_attention = 0 if rows is None else sum(rows.skips_attention(layer) for layer in profile.layer_ids)
    late_ffn = 0 if rows is None else sum(rows.skips_ffn(layer) for layer in range(sizes.layers))
    early = len(profile.layer_ids) - late_attention
    sparse = sum(1.0 - share for layer, share in computed.items() if rows and not rows.skips_ffn(layer))
    attention = attention_work(profile, query_heads, head_dim, context).prefill
    return PrefillWork(
        projections=len(profile.layer_ids) * context * key_value
        + (early * context + late_attention * kept) * query_output,
        ffn=((sizes.layers - late_ffn) * context + late_ffn * kept) * ffn
        - round(sparse * (stop - start) * ffn),
        attention=attention - skipped_attention(profile, query_heads, head_dim, context, rows),
    )
