"""Tile sizes of the Triton kernels: the whole tuning space, written down.

No autotuner runs in the serving path. It would time kernels inside the first requests, cannot run while a CUDA graph
is being captured, and may choose differently on each rank. The compile test holds every entry of this table to zero
spills and to the shared memory of its architecture. Not yet timed on a GPU.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton


@dataclass(frozen=True)
class TileConfig:
    """Tiles of one kernel variant."""

    block_m: int  # rows of the query tile: query tokens times the query heads that share a KV head
    block_n: int  # keys per step
    num_warps: int
    num_stages: int  # key tiles in flight, the current one included


# (padded head size, has wgmma or tcgen05) -> tiles, for 2-byte KV. Consumer parts of any generation have mma.sync and
# about 100 KiB of shared memory, like the second half of the table.
_PREFILL = {
    (64, True): TileConfig(128, 64, 8, 3),
    (128, True): TileConfig(128, 64, 8, 3),
    (256, True): TileConfig(128, 32, 8, 2),
    (64, False): TileConfig(128, 64, 8, 3),
    (128, False): TileConfig(128, 32, 8, 3),
    (256, False): TileConfig(64, 32, 8, 2),
}
# The soft cap's arithmetic needs registers that these variants do not have left.
_PREFILL_SOFT_CAP = {**_PREFILL, (64, True): TileConfig(128, 32, 8, 3), (256, True): TileConfig(64, 32, 8, 2)}
_DECODE = {64: (64, 4, 4), 128: (64, 4, 3), 256: (32, 4, 3)}  # block_n, warps, stages
# fp32 runs on the FMA units and is served for correctness, not for speed.
_PREFILL_FP32 = {64: TileConfig(32, 32, 8, 2), 128: TileConfig(32, 16, 8, 2), 256: TileConfig(16, 16, 8, 2)}

SPLIT_KEYS = 512
"""Fewest keys worth a decode split: 128 to 512 KiB of K and V; a partial output is at most 1 KiB per query head."""
PROGRAMS_PER_SM = 32
"""Bound on the programs of a decode launch, to which splits are cut. Most of those of local heads exit at once."""
MAX_SPLITS = 128


def padded_head_size(head_size: int) -> int:
    """Lanes of a tile for `head_size`: the next power of two, at least 64."""
    return max(64, triton.next_power_of_2(head_size))


def prefill_config(head_size: int, dtype: torch.dtype, soft_cap: bool, capability: int) -> TileConfig:
    """Tiles of the prefill kernel; `capability` is 10 * major + minor."""
    lanes = padded_head_size(head_size)
    if dtype == torch.float32:
        return _PREFILL_FP32[lanes]
    return (_PREFILL_SOFT_CAP if soft_cap else _PREFILL)[lanes, capability // 10 in (9, 10)]


def decode_config(head_size: int, ratio: int, dtype: torch.dtype) -> TileConfig:
    """Tiles of the decode kernel: the query heads of one KV head, padded to the 16 rows of a matrix step."""
    lanes, rows = padded_head_size(head_size), max(16, triton.next_power_of_2(ratio))
    if dtype == torch.float32:
        return TileConfig(rows, 16, 4, 2)
    return TileConfig(rows, *_DECODE[lanes])


def num_splits(requests: int, kv_heads: int, max_context: int, multiprocessors: int) -> int:
    """KV splits of a decode launch, from static sizes alone so that a captured graph stays valid.

    Args:
        requests: rows of the batch, padding included.
        kv_heads: KV heads of the launch.
        max_context: longest sequence the block tables can name.
        multiprocessors: of the device.
    """
    by_context = -(-max_context // SPLIT_KEYS)
    by_programs = -(-PROGRAMS_PER_SM * multiprocessors // max(1, requests * kv_heads))
    return max(1, min(by_context, by_programs, MAX_SPLITS))


@cache
def device_limits(device: torch.device) -> tuple[int, int]:
    """(10 * major + minor, multiprocessors) of a CUDA device; a small stand-in for any other device."""
    if device.type != "cuda":
        return 80, 8
    properties = torch.cuda.get_device_properties(device)
    return 10 * properties.major + properties.minor, properties.multi_processor_count
