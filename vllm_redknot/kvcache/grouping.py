"""Which head segments share a block table: the grouping that stores the least bytes in a bounded number of groups.

vLLM gives every group its own block table, and a block id of the pool is one page in each of the group's slots.
So all groups have the same number of slots, a group costs ``slots * blocks(longest-kept segment)`` pages per
request, and every group costs the scheduler and the model runner some work each step. A segment that shares a group
with a longer-kept one is *promoted*: its pages live longer than needed. What a head may see does not change, only
what is stored.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

SLACK = 0.01
"""Bytes worth giving up for fewer groups: a plan within 1% of the least bytes wins if it has fewer groups."""


class Kept(NamedTuple):
    """Most blocks a request ever holds for a segment: those of its sinks, and all others."""

    recent: int
    sink: int = 0

    @property
    def total(self) -> int:
        return self.recent + self.sink


@dataclass(frozen=True)
class GroupPlan:
    """Segments by group, in the order of their cost. All groups have `slots` slots; unused ones are padding."""

    groups: tuple[tuple[str, ...], ...]
    slots: int
    pages_per_request: int
    dense_pages_per_request: int
    promoted: int

    @property
    def padding(self) -> int:
        """Slots without a segment."""
        return self.slots * len(self.groups) - sum(len(group) for group in self.groups)

    @property
    def kept_share(self) -> float:
        """Pages of a longest request, relative to keeping every token of every head."""
        return self.pages_per_request / self.dense_pages_per_request


def plan_groups(blocks: Mapping[str, Kept], dense_blocks: int, max_groups: int) -> GroupPlan:
    """Group segments by the blocks each keeps for a longest request.

    With the segments sorted by cost, the best groups of a given size are consecutive runs (the sum of maxima over equal
    runs is least when they are sorted), so only the size is searched. That is exact where all local segments keep the
    same sink blocks; where they do not, a run costs its largest window and its most sinks, and is one good choice.

    Args:
        blocks: segment name -> what is kept for it, at least 1 and at most `dense_blocks` blocks.
        dense_blocks: blocks of a segment that keeps all tokens.
        max_groups: bound on the number of groups, at least 1.

    Raises:
        ValueError: Nothing to group, or a bound below 1.
    """
    if not blocks or max_groups < 1:
        raise ValueError(f"cannot group {len(blocks)} segments into at most {max_groups} groups")
    alike: dict[Kept, list[str]] = {}
    for name, kept in blocks.items():
        alike.setdefault(kept, []).append(name)
    kinds = sorted(alike, key=lambda kept: (-kept.total, kept))
    order = [name for kept in kinds for name in alike[kept]]
    ends = list(accumulate(len(alike[kept]) for kept in kinds))
    costs = {size: _run_costs(kinds, ends, size, dense_blocks) for size in sizes_tried(ends, max_groups)}
    pages = {size: size * sum(run_costs) for size, run_costs in costs.items()}
    bound = min(pages.values()) * (1 + SLACK)
    slots = min((len(costs[size]), pages[size], size) for size in costs if pages[size] <= bound)[2]
    runs = _runs(order, slots)
    return GroupPlan(
        groups=tuple(tuple(run) for run in _spread(runs, blocks)),
        slots=slots,
        pages_per_request=pages[slots],
        dense_pages_per_request=len(order) * dense_blocks,
        promoted=sum(
            blocks[name].total < cost for run, cost in zip(runs, costs[slots], strict=True) for name in run
        ),
    )


def _runs(order: Sequence[str], size: int) -> list[Sequence[str]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def sizes_tried(ends: Sequence[int], max_groups: int) -> set[int]:
    """Sizes of runs among which the best one is.

    What runs cost together changes only where the end of some run passes the end of a kind: of the sizes between two
    such places, the smallest takes the fewest pages.

    Args:
        ends: segments up to the end of each kind, in order of cost.
        max_groups: bound on the number of runs.
    """
    total = ends[-1]
    smallest = _ceil_div(total, max_groups)
    found = {
        size
        for end in ends
        for run in range(1, min(max_groups, total) + 1)
        for size in (_ceil_div(end, run), end // run + 1)
    }
    return {smallest, *(size for size in found if smallest <= size <= total)}


def _run_costs(kinds: Sequence[Kept], ends: Sequence[int], size: int, dense_blocks: int) -> list[int]:
    """Blocks of each group of `size`: its largest window and its most sinks, but no more than all tokens."""
    costs = []
    for start in range(0, ends[-1], size):
        run = kinds[bisect_right(ends, start) : bisect_left(ends, min(start + size, ends[-1])) + 1]
        costs.append(min(max(kept.recent for kept in run) + max(kept.sink for kept in run), dense_blocks))
    return costs


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _spread(runs: Sequence[Sequence[str]], blocks: Mapping[str, Kept]) -> list[list[str]]:
    """Deal segments of equal cost round-robin over the groups they fill, so that pipeline stages get equal shares."""
    result = [list(run) for run in runs]
    by_cost: dict[Kept, list[int]] = {}
    for index, run in enumerate(runs):
        if blocks[run[0]] == blocks[run[-1]]:
            by_cost.setdefault(blocks[run[0]], []).append(index)
    for indices in by_cost.values():
        full = [index for index in indices if len(runs[index]) == len(runs[0])]
        names = [name for index in full for name in runs[index]]
        for position, index in enumerate(full):
            result[index] = names[position :: len(full)]
    return result
