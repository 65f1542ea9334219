"""SegPagedAttention in plain torch: what a CPU without a C++ compiler gets. Loops over requests and heads."""

import torch

from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.segpaged_attention.batch import Batch
from vllm_redknot.kernels.segpaged_attention.reference import gather_head, visible

QUERY_TILE = 512
"""Query rows per score matrix: bounds its memory to ratio x 512 x keys floats."""


def visible_positions(first_query: int, last_query: int, window: int, sink: int) -> torch.Tensor:
    """Positions some query in [first_query, last_query] sees, ascending, int64: sinks and window, each once."""
    sink_end = min(sink, last_query + 1)
    window_start = max(0, first_query - window + 1)
    if window_start <= sink_end:
        return torch.arange(last_query + 1)
    return torch.cat((torch.arange(sink_end), torch.arange(window_start, last_query + 1)))


def segpaged_attention_torch(
    query: torch.Tensor,
    layout: SegmentLayout,
    batch: Batch,
    output: torch.Tensor,
    softmax_scale: float,
    soft_cap: float = 0.0,
) -> None:
    """See `segpaged_attention`. Scores and sums are fp32."""
    ratio = query.shape[1] // layout.num_kv_heads
    windows, sinks, groups = layout.window.tolist(), layout.sink.tolist(), layout.group.tolist()
    starts = batch.cu_seqlens_q.tolist()
    for request, length in enumerate(batch.seq_lens.tolist()):
        first_row, last_row = starts[request], starts[request + 1]
        context = length - (last_row - first_row)
        for row in range(first_row, last_row, QUERY_TILE):
            row_end = min(row + QUERY_TILE, last_row)
            query_pos = torch.arange(context + row - first_row, context + row_end - first_row)
            for head in range(layout.num_kv_heads):
                key_pos = visible_positions(int(query_pos[0]), int(query_pos[-1]), windows[head], sinks[head])
                key, value = gather_head(layout, head, batch.block_tables[groups[head], request], key_pos)
                heads = slice(head * ratio, (head + 1) * ratio)
                rows = query[row:row_end, heads].transpose(0, 1).float()  # [g, rows, D]
                scores = rows @ key.float().T * softmax_scale
                if soft_cap > 0:
                    scores = soft_cap * torch.tanh(scores / soft_cap)
                hidden = ~visible(query_pos, key_pos, windows[head], sinks[head])
                weights = scores.masked_fill_(hidden, float("-inf")).softmax(dim=-1)
                output[row:row_end, heads] = (weights @ value.float()).transpose(0, 1).to(output.dtype)
