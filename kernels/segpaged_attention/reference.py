"""Plain-torch oracle of SegPagedAttention. Slow, obvious, and the judge of every other implementation."""

import torch

from vllm_redknot.kernels.layout import SegmentLayout


def visible(query_pos: torch.Tensor, key_pos: torch.Tensor, window: int, sink: int) -> torch.Tensor:
    """Mask of the keys a query sees. Positions are absolute: ``j <= i and (i - j < window or j < sink)``.

    Args:
        query_pos: int64 [Q].
        key_pos: int64 [K].
        window: recent keys visible, the query's own included.
        sink: first keys always visible (causally).

    Returns:
        bool [Q, K].
    """
    distance = query_pos[:, None] - key_pos[None, :]
    return (distance >= 0) & ((distance < window) | (key_pos[None, :] < sink))


def gather_head(
    layout: SegmentLayout, head: int, table: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [len(positions), D] of one KV head at absolute `positions`, through its page list `table` [pages]."""
    page = table[positions // layout.page_size].long()
    row = layout.base[head] + page * layout.page_stride + (positions % layout.page_size) * layout.token_stride
    lane = torch.arange(layout.head_size, device=positions.device)
    key_index = row[:, None] + lane
    return layout.pool[key_index], layout.pool[key_index + layout.value_offset]


def segpaged_attention_reference(
    query: torch.Tensor,
    layout: SegmentLayout,
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    softmax_scale: float,
    soft_cap: float = 0.0,
    compute_dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Attention of every query token over the visible keys of its KV head. Only visible keys are ever gathered.

    Args:
        query: [T, Hq, D]; query heads h*g .. h*g+g-1 belong to KV head h, g = Hq / H.
        layout: the layer's segments (H KV heads).
        block_tables: int32 [G, R, P]; entry (g, r, p) is the page that holds positions p*page_size ... of request r in
            group g. Entries that hold no visible key are never read and may be stale.
        cu_seqlens_q: int32 [R + 1]; request r owns query rows cu[r] .. cu[r+1].
        seq_lens: int32 [R]; tokens of request r including its query tokens; the last query row has position len - 1.
        softmax_scale: multiplies q.k.
        soft_cap: 0, or c for ``c * tanh(s / c)`` on the scaled scores.
        compute_dtype: dtype of the arithmetic; float64 makes it an oracle.

    Returns:
        [T, Hq, D] in query's dtype. A request with no query rows contributes none.
    """
    output = torch.full_like(query, float("nan"))
    ratio = query.shape[1] // layout.num_kv_heads
    starts, lengths = cu_seqlens_q.tolist(), seq_lens.tolist()
    for request, length in enumerate(lengths):
        first, last = starts[request], starts[request + 1]
        if first == last:
            continue
        query_pos = torch.arange(length - (last - first), length, device=query.device)
        key_pos = torch.arange(length, device=query.device)
        for head in range(layout.num_kv_heads):
            mask = visible(query_pos, key_pos, int(layout.window[head]), int(layout.sink[head]))
            needed = mask.any(dim=0)
            table = block_tables[int(layout.group[head]), request]
            key, value = gather_head(layout, head, table, key_pos[needed])
            rows = query[first:last, head * ratio : (head + 1) * ratio].to(compute_dtype)
            scores = torch.einsum("qgd,kd->gqk", rows, key.to(compute_dtype)) * softmax_scale
            if soft_cap > 0:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            scores = scores.masked_fill(~mask[:, needed], float("-inf"))
            result = torch.einsum("gqk,kd->qgd", scores.softmax(dim=-1), value.to(compute_dtype))
            output[first:last, head * ratio : (head + 1) * ratio] = result.to(query.dtype)
    return output
