"""Device functions that the Triton prefill, decode and reduction kernels share."""
# Upper case marks compile-time parameters, as everywhere in Triton.
# ruff: noqa: N803
# Triton is absent from the type checker's view.
# mypy: disable-error-code="untyped-decorator,no-any-return"

import triton
import triton.language as tl


@triton.jit
def ceil_div(x: tl.tensor, y: tl.tensor) -> tl.tensor:
    """ceil(x / y) of non-negative integers."""
    return (x + y - 1) // y


@triton.jit
def first_visible(position: tl.tensor, window: tl.tensor) -> tl.tensor:
    """First key inside the window of the query at `position`. The global window is 2^31 - 1: subtract first."""
    return tl.maximum(position - window + 1, 0)


@triton.jit
def visible_tiles(
    first: tl.tensor, last: tl.tensor, sink: tl.tensor, BLOCK_N: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Aligned key tiles that [0, sink) and [first, last] touch, as two disjoint ranges.

    Returns:
        (s, w, e): tiles [0, s) and [w, e). Each holds at least one key of the union, and no tile is in both.
    """
    sink_end = ceil_div(tl.minimum(sink, last + 1), BLOCK_N)
    return sink_end, tl.maximum(first // BLOCK_N, sink_end), last // BLOCK_N + 1


@triton.jit
def split_of_tiles(
    tiles: tl.tensor, splits: tl.tensor, MIN_TILES: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Share `tiles` key tiles out to at most `splits` programs of at least MIN_TILES each.

    Returns:
        (tiles per split, splits in use). Decode and reduction must agree, hence one function.
    """
    per_split = tl.maximum(ceil_div(tiles, splits), MIN_TILES)
    return per_split, ceil_div(tiles, per_split)


@triton.jit
def request_of_tile(
    cu_seqlens_q: tl.tensor, requests: tl.tensor, tile: tl.tensor, BLOCK_Q: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Which request a query tile belongs to, and the tile's index in it.

    Tile numbers are handed out so that request r starts at ``cu[r] // BLOCK_Q + r``: enough for its
    ceil(len / BLOCK_Q) tiles whatever cu[r] is, at most one too many per request, and no length is read on the host.
    """
    low = 0
    high = requests - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(cu_seqlens_q + middle) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle - 1
    return low, tile - (tl.load(cu_seqlens_q + low) // BLOCK_Q + low)


@triton.jit
def attend_tile(
    query: tl.tensor,
    position: tl.tensor,
    acc: tl.tensor,
    row_max: tl.tensor,
    row_sum: tl.tensor,
    tile: tl.tensor,
    first: tl.tensor,
    last: tl.tensor,
    window: tl.tensor,
    sink: tl.tensor,
    pool: tl.tensor,
    table: tl.tensor,
    base: tl.tensor,
    page_stride: tl.tensor,
    token_stride: tl.tensor,
    value_offset: tl.tensor,
    scale: tl.tensor,
    cap: tl.tensor,
    MASKED: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """One step of the online softmax: fold key tile `tile` into the state of a query tile.

    Scores live in the base-2 domain: `scale` holds softmax_scale * log2(e), or with a soft cap c the factor
    2 * log2(e) * softmax_scale / c that makes ``tanh(s / c) = 1 - 2 / (2^x + 1)``, `cap` holds c * log2(e).

    Args:
        query: [BLOCK_M, BLOCK_D], zero in unused rows and lanes.
        position: int32 [BLOCK_M], absolute position of each row.
        acc, row_max, row_sum: fp32 [BLOCK_M, BLOCK_D], [BLOCK_M], [BLOCK_M].
        tile: keys tile * BLOCK_N ... ; must hold a key of [0, sink) or [first, last].
        first, last: first key in the window of the earliest row, position of the latest row. Keys outside
            ``[first, last]`` and at or beyond `sink` are neither read nor multiplied.
        base: int64, a multiple of 16 elements, so that a row of K or V is loaded 16 bytes at a time.
        MASKED: False promises that every row sees every key of the tile.
    """
    lane = tl.arange(0, BLOCK_D)
    key_pos = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    needed = (key_pos <= last) & ((key_pos >= first) | (key_pos < sink))
    if PAGE_SIZE % BLOCK_N == 0:
        page = tl.load(table + tile * BLOCK_N // PAGE_SIZE).to(tl.int64)
    else:
        page = tl.load(table + key_pos // PAGE_SIZE, mask=needed, other=0).to(tl.int64)
    row = base + page * page_stride + (key_pos % PAGE_SIZE) * token_stride
    address = pool + row[:, None] + lane[None, :]
    if MASKED:
        loaded = needed[:, None] & (lane < HEAD_SIZE)[None, :]
        key = tl.load(address, mask=loaded, other=0.0)
        value = tl.load(address + value_offset, mask=loaded, other=0.0)
    elif HEAD_SIZE == BLOCK_D:
        key = tl.load(address)
        value = tl.load(address + value_offset)
    else:
        key = tl.load(address, mask=(lane < HEAD_SIZE)[None, :], other=0.0)
        value = tl.load(address + value_offset, mask=(lane < HEAD_SIZE)[None, :], other=0.0)

    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale  # [BLOCK_M, BLOCK_N]
    if SOFT_CAP:
        scores = cap - cap * 2.0 / (tl.exp2(scores) + 1.0)
    if MASKED:
        distance = position[:, None] - key_pos[None, :]
        seen = (distance >= 0) & ((distance < window) | (key_pos < sink)[None, :])
        scores = tl.where(seen, scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    weights = tl.exp2(scores - new_max[:, None])
    decay = tl.exp2(row_max - new_max)
    row_sum = row_sum * decay + tl.sum(weights, 1)
    acc = tl.dot(weights.to(value.dtype), value, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_max, row_sum
