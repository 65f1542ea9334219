"""The model the real manager is compared with: dicts of what every page holds and who holds it.

The KV of a token depends on all tokens before it, so the content of a page slot is named by the token *prefix* that
ends there. A page that is handed out again holds garbage (None) until it is written.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from collections.abc import Sequence as Values
from dataclasses import dataclass, field
from typing import Any

from kv_world import World
from vllm.v1.request import Request


class InvariantError(AssertionError):
    """The real manager did what the model forbids."""


def require(condition: bool, message: str, *values: object) -> None:
    if not condition:
        raise InvariantError(message.format(*values))


class Prefixes:
    """Names of token prefixes: equal numbers are equal prefixes."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, int], int] = {}

    def of(self, tokens: Iterable[int]) -> list[int]:
        """The name of the prefix that ends at each token."""
        names, last = [], -1
        for token in tokens:
            last = self._ids.setdefault((last, token), len(self._ids))
            names.append(last)
        return names


@dataclass
class Pages:
    """Every page's content and owner, and the block tables as they must be."""

    world: World
    content: list[list[int | None]] = field(init=False)
    group: list[int | None] = field(init=False)
    tables: dict[str, list[list[int]]] = field(default_factory=dict)
    deferred: Counter[int] = field(default_factory=Counter)
    times_taken: Counter[int] = field(default_factory=Counter)
    dropped: dict[str, int] = field(default_factory=dict)
    """Request -> next query of the last drop: blocks wholly before its windows must be null, others must not."""

    def __post_init__(self) -> None:
        self.content = [[] for _ in range(self.world.num_blocks)]
        self.group = [None] * self.world.num_blocks

    def take(self, block: int, group: int) -> None:
        """A page leaves the pool for a group: what it held is gone."""
        require(self.references()[block] == 0, "block {} of the pool is still held", block)
        self.group[block] = group
        self.times_taken[block] += 1
        self.content[block] = [None] * self.world.groups[group].block_size

    def write(self, table: Values[int], group: int, names: Values[int], start: int, end: int) -> None:
        """Store tokens [start, end) of a sequence. Null pages swallow what is written to them."""
        size = self.world.groups[group].block_size
        for position in range(start, end):
            if block := table[position // size]:
                self.content[block][position % size] = names[position]

    def check_read(
        self, table: Values[int], group: int, names: Values[int], start: int, end: int, who: str
    ) -> None:
        """Queries [start, end) find every key they may see, and nothing else in its place."""
        rule = self.world.groups[group]
        spans = [(rule.first_window_token(start), end)]
        if spans[0][0] > 0:
            spans.append((0, min(rule.sink, spans[0][0])))
        size = rule.block_size
        for first, last in spans:
            for index in range(first // size, -(-last // size)):
                low, high = max(first, index * size), min(last, (index + 1) * size)
                require(index < len(table), "{}: group {} has no block {}", who, group, index)
                block = table[index]
                require(block != 0, "{}: group {} must read block {}, which is null", who, group, index)
                require(self.group[block] == group, "{}: page {} left group {}", who, block, group)
                held = self.content[block][low - index * size : high - index * size]
                require(
                    held == names[low:high],
                    "{}: group {} page {} at block {} does not hold tokens {} to {}",
                    who,
                    group,
                    block,
                    index,
                    low,
                    high,
                )

    def holds(self, block: int, group: int, names: Values[int], index: int) -> bool:
        """Whether a page holds block `index` of a sequence in full."""
        size = self.world.groups[group].block_size
        return self.group[block] == group and self.content[block] == names[index * size : (index + 1) * size]

    def references(self) -> Counter[int]:
        """Page -> block tables and delayed frees that hold it."""
        count = Counter(self.deferred)
        for table in self.tables.values():
            for blocks in table:
                count.update(blocks)
        return count

    def check_table(self, request_id: str, real: list[list[int]], num_tokens: int, cap: list[int]) -> None:
        """A request's real block table: middles dropped, all else there, no more than the spec's bound."""
        next_query = self.dropped[request_id]
        for group, (rule, blocks) in enumerate(zip(self.world.groups, real, strict=True)):
            size = rule.block_size
            require(
                len(blocks) == -(-num_tokens // size),
                "{} group {}: {} blocks for {} tokens",
                request_id,
                group,
                len(blocks),
                num_tokens,
            )
            first = rule.first_window_token(next_query)
            for index, block in enumerate(blocks):
                keep = index < rule.sink_blocks or (index + 1) * size > first
                # One token of slack: a manager may keep the token just outside the window.
                drop = not keep and (index + 1) * size < first
                require(block != 0 or not keep, "{} group {}: block {} was dropped", request_id, group, index)
                require(block == 0 or not drop, "{} group {}: block {} was kept", request_id, group, index)
            held = sum(block != 0 for block in blocks)
            require(held <= cap[group], "{} group {}: {} blocks, cap {}", request_id, group, held, cap[group])

    def check_pool(self, pool: Any) -> None:
        """Reference counts, the free list, and that free + owned = total."""
        count = self.references()
        del count[0]
        free = {block.block_id for block in pool.free_block_queue.get_all_free_blocks()}
        require(
            len(free) == pool.get_num_free_blocks(), "the free list has {} of its blocks twice", len(free)
        )
        for block in pool.blocks[1:]:
            held = count[block.block_id]
            require(
                block.ref_cnt == held,
                "block {}: {} references, model {}",
                block.block_id,
                block.ref_cnt,
                held,
            )
            require((block.block_id in free) == (held == 0), "block {} is both free and held", block.block_id)
        require(0 not in free, "the null block is in the free list")
        require(len(free) + len(+count) == self.world.num_blocks - 1, "free + owned is not the pool")

    def check_owners(self, names_of: dict[str, list[int]]) -> None:
        """No page serves two groups, two places of a sequence, or two token prefixes."""
        owners: defaultdict[int, set[tuple[int, int, int]]] = defaultdict(set)
        for request_id, table in self.tables.items():
            names = names_of[request_id]
            for group, blocks in enumerate(table):
                size = self.world.groups[group].block_size
                for index, block in enumerate(blocks):
                    if block:
                        # A block that is not full cannot be shared: its owner is the request.
                        full = (index + 1) * size <= len(names)
                        end = names[(index + 1) * size - 1] if full else -hash(request_id)
                        owners[block].add((group, index, end))
        for block, claims in owners.items():
            require(len(claims) == 1, "page {} is owned as {}", block, claims)


@dataclass
class Sequence:
    """A request and the tokens it will turn out to have, prompt and output."""

    request: Request
    script: list[int]
    names: list[int]

    @property
    def id(self) -> str:
        return str(self.request.request_id)


@dataclass
class Scheduled:
    """A request's share of a step: its query tokens and the block tables the step was sent with."""

    sequence: Sequence
    start: int
    end: int
    tables: list[list[int]]
    samples: bool
    fenced: bool = True
