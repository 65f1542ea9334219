"""Attention under a sink and a window in blocks: time grows with T x window, and gradients flow."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

BLOCK: Final = 128
"""Queries of a block. Each computes as many scores too many, and keys are copied 1 + window / block times."""


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    sink: int,
    scaling: float,
    rounded: bool = False,
) -> torch.Tensor:
    """Causal attention of one sequence; key j is visible to query i iff j <= i and (i - j < window or j < sink).

    Args:
        query: [Hq, T, D]; Hq is a multiple of H, query heads of a KV head lie side by side.
        key, value: [H, T, D].
        window: in tokens, the query itself counted; None for all.
        rounded: under a window, scores may be rounded to the inputs' type: half the time, forward and back.

    Returns:
        [Hq, T, D].
    """
    length, ratio = query.shape[1], query.shape[0] // key.shape[0]
    block = length if window is None else min(window, BLOCK)
    if window is None or sink + window + block >= length:
        mask = None if window is None or window >= length else _mask(length, window, sink, query)
        key, value = (side.repeat_interleave(ratio, 0) for side in (key, value))
        return scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, is_causal=mask is None, scale=scaling
        )[0]
    blocks = -(-length // block)
    missing = blocks * block - length
    # Each block of queries sees the sinks, the `window` keys before it, and itself.
    rows = pad(query, (0, 0, 0, missing)).unflatten(1, (blocks, block)).transpose(0, 1)
    keys = _with_sinks(key, window, block, missing, sink)
    values = _with_sinks(value, window, block, missing, sink)
    mask = _block_mask(blocks, block, window, sink, query.device, query.dtype)
    if rounded:
        result = _rounded(rows, keys, values, mask, scaling)
    else:
        keys, values = (side.repeat_interleave(ratio, 1) for side in (keys, values))
        result = scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scaling)
    return result.transpose(0, 1).flatten(1, 2)[:, :length]


def _rounded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """[blocks, Hq, block, D]: the query heads of a KV head are rows of one product."""
    ratio, block = query.shape[1] // key.shape[1], query.shape[2]
    rows = (query * scaling).unflatten(1, (-1, ratio)).flatten(2, 3)
    scores = (rows @ key.transpose(2, 3)).unflatten(2, (ratio, block)).add_(mask[:, :, None])
    result = scores.softmax(-1).flatten(2, 3) @ value
    return result.unflatten(2, (ratio, block)).flatten(1, 2)


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


def _mask(length: int, window: int, sink: int, like: torch.Tensor) -> torch.Tensor:
    """[T, T], to be added to scores."""
    position = torch.arange(length, device=like.device)
    distance = position[:, None] - position[None, :]
    return _added((distance >= 0) & ((distance < window) | (position < sink)), like.dtype)


@lru_cache(maxsize=8)
def _block_mask(
    blocks: int, block: int, window: int, sink: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """[blocks, 1, block, sink + window + block], to be added to scores.

    Each visible key is seen once, as a sink only where the window has left it.
    """
    # Kept for later passes, of which some have gradients.
    with torch.inference_mode(False):
        return _made_block_mask(blocks, block, window, sink, device, dtype)


def _made_block_mask(
    blocks: int, block: int, window: int, sink: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    first = torch.arange(blocks, device=device)[:, None, None] * block
    position = first + torch.arange(block, device=device)[None, :, None]
    near = first - window + torch.arange(window + block, device=device)[None, None, :]
    distance = position - near
    in_window = (near >= 0) & (distance >= 0) & (distance < window)
    as_sink = position - torch.arange(sink, device=device)[None, None, :] >= window
    return _added(torch.cat((as_sink.expand(blocks, block, sink), in_window), dim=2)[:, None], dtype)


def _added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a key is seen, else -inf; in the inputs' type, as torch's attention would make it in every call."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))
