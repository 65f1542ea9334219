"""What one engine step tells SegPagedAttention: requests, lengths, page lists. The same for every layer."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Batch:
    """The requests of one engine step. R requests, G groups of segments, P pages per row of a block table."""

    block_tables: torch.Tensor  # int32 [G, R, P], contiguous; entries without a visible key are never read
    cu_seqlens_q: torch.Tensor  # int32 [R + 1], request r owns query rows cu[r] .. cu[r+1]
    seq_lens: torch.Tensor  # int32 [R], tokens of the request including its query tokens
    num_tokens: int  # query rows that count; rows beyond are padding
    max_query_len: int  # an upper bound of the query rows of a request
    max_seq_len: int  # an upper bound of seq_lens
    work: object | None = None  # what the device's implementation planned; opaque


def plan_batch(
    block_tables: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    seq_lens: torch.Tensor,
    num_tokens: int,
    max_query_len: int,
    max_seq_len: int,
) -> Batch:
    """Check and freeze what all layers of one engine step share. Called once per step, never per layer.

    Reads shapes and dtypes only, so it never waits for a GPU.

    Args:
        block_tables: int32 [G, R, P], contiguous.
        cu_seqlens_q: int32 [R + 1], contiguous.
        seq_lens: int32 [R], contiguous.
        num_tokens: query rows that count.
        max_query_len: an upper bound of the query rows of a request.
        max_seq_len: an upper bound of `seq_lens`.

    Raises:
        ValueError: a tensor has the wrong shape, dtype or memory order.
    """
    for name, tensor in (
        ("block_tables", block_tables),
        ("cu_seqlens_q", cu_seqlens_q),
        ("seq_lens", seq_lens),
    ):
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous int32, got {tensor.dtype} with strides {tensor.stride()}"
            )
    if block_tables.dim() != 3:
        raise ValueError(
            f"block_tables must be [groups, requests, pages], got shape {tuple(block_tables.shape)}"
        )
    requests = block_tables.shape[1]
    if seq_lens.shape != (requests,) or cu_seqlens_q.shape != (requests + 1,):
        raise ValueError(
            f"block_tables names {requests} requests, so seq_lens must be [{requests}] and cu_seqlens_q "
            f"[{requests + 1}], got {list(seq_lens.shape)} and {list(cu_seqlens_q.shape)}"
        )
    return Batch(block_tables, cu_seqlens_q, seq_lens, num_tokens, max_query_len, max_seq_len)
