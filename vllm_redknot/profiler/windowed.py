"""Attention under a sink and a window in blocks: time grows with T x window, and gradients flow."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

BLOCK: Final = 128
"""Queries of a block: it computes as many scores too many for each as it has queries, and copies window / block keys."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, sink: int, scaling: float
) -> torch.Tensor:
    """Causal attention of one sequence; key j is visible to query i iff j <= i and (i - j < window or j < sink).

    Args:
        query: [Hq, T, D]; Hq is a multiple of H, query heads of a KV head lie side by side.
        key, value: [H, T, D].
        window: in tokens, the query itself counted; None for all.

    Returns:
        [Hq, T, D].
    """
    length = query.shape[1]
    ratio = query.shape[0] // key.shape[0]
    if ratio > 1:
        key, value = key.repeat_interleave(ratio, 0), value.repeat_interleave(ratio, 0)
    if window is None or window >= length:
        return scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, scale=scaling
        )[0]
    block = min(window, BLOCK)
    if sink + window + block >= length:
        position = torch.arange(length, device=query.device)
        distance = position[:, None] - position[None, :]
        seen = (distance >= 0) & ((distance < window) | (position < sink))
        return scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=seen, scale=scaling
        )[0]
    blocks = -(-length // block)
    missing = blocks * block - length
    # Each block of queries sees the sinks, the `window` keys before it, and itself.
    rows = pad(query, (0, 0, 0, missing)).unflatten(1, (blocks, block)).transpose(0, 1)
    keys = _with_sinks(key, window, block, missing, sink)
    values = _with_sinks(value, window, block, missing, sink)
    mask = _block_mask(blocks, block, window, sink, query.device)
    result = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
    return result.transpose(0, 1).flatten(1, 2)[:, :length]


def attend_rows(
    query: torch.Tensor,
    rows: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    sink: int,
    scaling: float,
) -> torch.Tensor:
    """`attend` for some of the queries alone; its mask is K x T, so K should be small.

    Args:
        query: [Hq, K, D], those at the positions `rows`, int64 [K].
        key, value: [H, T, D].

    Returns:
        [Hq, K, D].
    """
    ratio = query.shape[0] // key.shape[0]
    if ratio > 1:
        key, value = key.repeat_interleave(ratio, 0), value.repeat_interleave(ratio, 0)
    position = torch.arange(key.shape[1], device=query.device)
    distance = rows[:, None] - position[None, :]
    seen = distance >= 0
    if window is not None:
        seen &= (distance < window) | (position < sink)
    return scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=seen, scale=scaling)[0]


def _with_sinks(rows: torch.Tensor, window: int, block: int, missing: int, sink: int) -> torch.Tensor:
    """[H, T, D] -> [blocks, H, sink + window + block, D]."""
    near = pad(rows, (0, 0, window, missing)).unfold(1, window + block, block).permute(1, 0, 3, 2)
    far = rows[None, :, :sink].expand(near.shape[0], -1, -1, -1)
    return torch.cat((far, near), dim=2)


@lru_cache(maxsize=8)
def _block_mask(blocks: int, block: int, window: int, sink: int, device: torch.device) -> torch.Tensor:
    """[blocks, 1, block, sink + window + block]: each visible key once, as a sink only where the window has left it."""
    first = torch.arange(blocks, device=device)[:, None, None] * block
    position = first + torch.arange(block, device=device)[None, :, None]
    near = first - window + torch.arange(window + block, device=device)[None, None, :]
    distance = position - near
    in_window = (near >= 0) & (distance >= 0) & (distance < window)
    as_sink = position - torch.arange(sink, device=device)[None, None, :] >= window
    return torch.cat((as_sink.expand(blocks, block, sink), in_window), dim=2)[:, None]
