"""Which head segments share a block table: the grouping that stores the least bytes in a bounded number of groups.

vLLM gives every group its own block table, and a block id of the pool is one page in each of the group's slots.
So all groups have the same number of slots, a group costs ``slots * blocks(longest-kept segment)`` pages per
request, and every group costs the scheduler and the model runner some work each step. A segment that shares a group
with a longer-kept one is *promoted*: its pages live longer than needed. What a head may see does not change, only
what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    order = sorted(blocks, key=lambda name: (-blocks[name].total, blocks[name]))
    costs = {
        size: [_run_cost(run, blocks, dense_blocks) for run in _runs(order, size)]
        for size in range(math.ceil(len(order) / max_groups), len(order) + 1)
    }
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


def _run_cost(run: Sequence[str], blocks: Mapping[str, Kept], dense_blocks: int) -> int:
    """Blocks of a group: its largest window and its most sinks, but no more than all tokens."""
    total = max(blocks[name].recent for name in run) + max(blocks[name].sink for name in run)
    return min(total, dense_blocks)


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
