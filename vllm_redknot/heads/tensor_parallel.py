"""Head classes under tensor parallelism: one profile all ranks can report.

vLLM asks every rank for the spec of each layer name and takes them to be equal, but head i of rank 0 and
head i of rank 1 are different heads. So a local index sees what the widest of its heads sees.
"""

from dataclasses import replace
from typing import NamedTuple

from vllm_redknot.heads.errors import HeadFitError
from vllm_redknot.heads.profile import HeadClass, HeadProfile


class RankHeads(NamedTuple):
    """The heads of one rank, the same for all. Counts are over all ranks and leave out the dense prefix."""

    profile: HeadProfile
    promoted: int  # local heads that see everything because a head of another rank does
    widened: int  # local heads with a larger window or sink than their own

    def describe(self) -> str:
        return f"tensor parallelism promotes {self.promoted} local heads to global and widens {self.widened}"


def per_rank(profile: HeadProfile, tp_size: int) -> RankHeads:
    """The profile of a rank of `tp_size`, windows and sinks the largest over the heads of a local index.

    H % tp_size == 0: rank r has heads [r * H / tp_size, (r + 1) * H / tp_size). tp_size % H == 0: every rank
    has one head, r * H // tp_size. Anything else raises HeadFitError.
    """
    total = profile.num_kv_heads
    if tp_size < 1 or (total % tp_size and tp_size % total):
        raise HeadFitError(
            f"{profile.shape} do not split over tensor-parallel size {tp_size}:"
            " one of the two numbers must divide the other"
        )
    heads = max(1, total // tp_size)
    merged = [
        [_merge(profile, row, range(local, total, heads)) for local in range(heads)]
        for row in range(profile.num_layers)
    ]
    rank = replace(
        profile,
        classes=tuple(tuple(head.cls for head in row) for row in merged),
        window=tuple(tuple(head.window for head in row) for row in merged),
        sink=tuple(tuple(head.sink for head in row) for row in merged),
    )
    sparse = merged[profile.dense_prefix_layers :]
    return RankHeads(
        rank,
        promoted=sum(head.promoted for row in sparse for head in row),
        widened=sum(head.widened for row in sparse for head in row),
    )


class _Merged(NamedTuple):
    cls: HeadClass
    window: int | None
    sink: int
    promoted: int
    widened: int


def _merge(profile: HeadProfile, row: int, heads: range) -> _Merged:
    """One local index: the heads of all ranks that share it."""
    classes = [profile.classes[row][head] for head in heads]
    sink = max(profile.sink[row][head] for head in heads)
    if all(cls is HeadClass.LOCAL for cls in classes):
        window = max(profile.window[row][head] or 0 for head in heads)
        widened = sum(
            (profile.window[row][head], profile.sink[row][head]) != (window, sink) for head in heads
        )
        return _Merged(HeadClass.LOCAL, window, sink, 0, widened)
    same = len(set(classes)) == 1
    return _Merged(classes[0] if same else HeadClass.GLOBAL, None, sink, classes.count(HeadClass.LOCAL), 0)
