"""What `redknot plan` computes: KV bytes, sessions and attention FLOPs of a server, before there is one.

The engine's figure repeats what vLLM does: the rank's profile, the blocks each head keeps, the plugin's own grouping
with its padding and promotion (`kvcache.grouping.plan_groups`), whole blocks of the pool. The closed form is the same
without grouping. All bytes and FLOPs are of one tensor-parallel rank, as is its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from vllm_redknot.cli.errors import CliError
from vllm_redknot.heads.flops import AttentionWork, attention_work
from vllm_redknot.heads.profile import HeadClass, HeadKind, HeadProfile, all_global
from vllm_redknot.heads.tensor_parallel import per_rank
from vllm_redknot.kvcache.capacity import PageFormat, Workload, blocks_kept, capacity
from vllm_redknot.kvcache.grouping import GroupPlan, Kept, plan_groups
from vllm_redknot.rows.prefill_flops import (
    DecoderSizes,
    PrefillWork,
    RowsSkipped,
    prefill_work,
    rows_skipped,
)
from vllm_redknot.rows.schedule import RowSchedule


@dataclass(frozen=True)
class Server:
    """A model's attention and the engine settings that decide what its KV costs.

    Attributes:
        profile: of all ranks; rows beyond `attention_layers` are ignored.
        attention_layers: layers that have KV heads.
        query_heads: of all ranks.
        sliding: attention layer -> its own window, which it keeps.
        in_flight_tokens: batches at once (2 with asynchronous scheduling) x tokens per batch.
        kv_bytes: of KV memory per rank; None if unknown.
        sizes: of the rest of the model; None if unknown.
        layers: of the model, with and without KV heads; None: those with them.
        rows: what prompt tokens skip; None: nothing.
    """

    profile: HeadProfile
    attention_layers: tuple[int, ...]
    query_heads: int
    page: PageFormat
    in_flight_tokens: int
    max_groups: int
    tp_size: int = 1
    sliding: Mapping[int, int] = field(default_factory=dict)
    kv_bytes: int | None = None
    sizes: DecoderSizes | None = None
    layers: int | None = None
    rows: RowSchedule | None = None

    @cached_property
    def rank(self) -> HeadProfile:
        """What one rank serves of the profile."""
        return self._rank_of(self.profile)

    @cached_property
    def dense_rank(self) -> HeadProfile:
        """The same with every head global."""
        return self._rank_of(all_global(self.profile.layer_ids, self.profile.num_kv_heads))

    def _rank_of(self, profile: HeadProfile) -> HeadProfile:
        return effective_profile(per_rank(profile, self.tp_size).profile, self.attention_layers, self.sliding)


@dataclass(frozen=True)
class Cost:
    """One request of the full context on one rank, and how many fit. `closed_form_bytes` is without grouping.

    With less KV memory than `least_kv_bytes` vLLM does not start: one request, and the block that its pool holds back.
    `work` is attention's, and computes all rows; so does `prefill`, of the whole decoder, None where it is unknown.
    """

    request_bytes: int
    least_kv_bytes: int
    closed_form_bytes: int
    groups: int
    padding_slots: int
    promoted_segments: int
    sessions: float | None
    cached_tokens: int | None
    work: AttentionWork
    prefill: PrefillWork | None


@dataclass(frozen=True)
class ContextPlan:
    """REDKNOT and stock vLLM (every token of every head, a layer's own window aside) with `--max-model-len context`.

    `rows` and `prefill_with_rows` are None without row skipping, the latter also where the model's sizes are unknown.
    """

    context: int
    redknot: Cost
    stock: Cost
    rows: RowsSkipped | None
    prefill_with_rows: PrefillWork | None

    @property
    def kept_share(self) -> float:
        """KV bytes relative to stock."""
        return self.redknot.request_bytes / self.stock.request_bytes


def plan_context(server: Server, context: int) -> ContextPlan:
    """The figures for requests of `context` tokens.

    Raises:
        CliError: The profile is for MLA, or query heads do not split.
        HeadFitError: KV heads do not split over the ranks.
    """
    if server.profile.kind is not HeadKind.KV:
        raise CliError(
            f"the head classes are for {server.profile.shape}, which share one KV cache: nothing to plan"
        )
    if server.query_heads % server.tp_size or server.query_heads % server.profile.num_kv_heads:
        raise CliError(
            f"{server.query_heads} query heads do not split over {server.profile.num_kv_heads} KV heads and"
            f" tensor-parallel size {server.tp_size}: both must divide them"
        )
    rows = server.rows
    return ContextPlan(
        context,
        _cost(server, server.rank, context),
        _cost(server, server.dense_rank, context),
        None
        if rows is None
        else rows_skipped(
            rows, server.attention_layers, server.layers or len(server.attention_layers), context
        ),
        None if rows is None else _prefill(server, server.rank, context, rows),
    )


def _prefill(server: Server, rank: HeadProfile, context: int, rows: RowSchedule | None) -> PrefillWork | None:
    if server.sizes is None:
        return None
    heads = server.query_heads // server.tp_size
    return prefill_work(rank, heads, server.page.head_size, server.sizes, server.tp_size, context, rows)


def _cost(server: Server, rank: HeadProfile, context: int) -> Cost:
    workload = Workload(context, server.in_flight_tokens)
    plan = _grouping(rank, server, workload)
    # A block id of the pool is one page in each slot of a group.
    block_bytes = plan.slots * server.page.page_bytes
    pool_blocks = None if server.kv_bytes is None else server.kv_bytes // block_bytes
    sessions = None if pool_blocks is None else pool_blocks * plan.slots / plan.pages_per_request
    return Cost(
        request_bytes=plan.pages_per_request * server.page.page_bytes,
        least_kv_bytes=plan.pages_per_request * server.page.page_bytes + block_bytes,
        closed_form_bytes=capacity(rank, server.page, workload).request_bytes,
        groups=len(plan.groups),
        padding_slots=plan.padding,
        promoted_segments=plan.promoted,
        sessions=sessions,
        cached_tokens=None if sessions is None else int(sessions * context),
        work=attention_work(rank, server.query_heads // server.tp_size, server.page.head_size, context),
        prefill=_prefill(server, rank, context, None),
    )


def _grouping(rank: HeadProfile, server: Server, workload: Workload) -> GroupPlan:
    """The plan the engine makes of the same heads (`kvcache.segment_groups` has it from vLLM's specs)."""
    page = server.page
    dense_blocks = -(-workload.context_tokens // page.block_size)
    blocks = {}
    for layer in rank.layer_ids:
        for head in range(rank.num_kv_heads):
            seen = rank.visibility(layer, head)
            total = blocks_kept(seen, page, workload)
            sink = -(-seen.sink // page.block_size) if total < dense_blocks else 0
            blocks[f"{layer}.{head}"] = Kept(total - sink, sink)
    return plan_groups(blocks, dense_blocks, server.max_groups)


def effective_profile(
    profile: HeadProfile, attention_layers: tuple[int, ...], sliding: Mapping[int, int]
) -> HeadProfile:
    """The profile as the engine applies it: attention layers alone, the dense prefix and own windows written out."""
    rows = [
        [
            (HeadClass.LOCAL, sliding[layer], 0)
            if layer in sliding
            else (profile.head_class(layer, head), *profile.visibility(layer, head))
            for head in range(profile.num_kv_heads)
        ]
        for layer in attention_layers
    ]
    return replace(
        profile,
        classes=tuple(tuple(cls for cls, _, _ in row) for row in rows),
        window=tuple(tuple(window for _, window, _ in row) for row in rows),
        sink=tuple(tuple(sink for _, _, sink in row) for row in rows),
        layer_ids=attention_layers,
        dense_prefix_layers=0,
    )
