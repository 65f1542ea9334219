"""What a prefix-cache lookup must find: never a wrong page, as long as the pool allows, and every replayed prompt."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kv_model import Pages, Scheduled, Sequence, require
from kv_world import World
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.kv_cache_utils import resolve_block_hashes
from vllm.v1.request import RequestStatus


class HitOracle:
    """Checks lookups. `forgotten` are pages whose hashes were taken from them."""

    def __init__(self, world: World, pages: Pages, pool: Any, events: Counter[str]) -> None:
        self.world, self.pages, self.pool, self.events = world, pages, pool, events
        self.replayable: dict[int, list[list[tuple[int, int, int]]]] = {}
        self.forgotten: set[int] = set()

    def check_hit(self, sequence: Sequence, blocks: KVCacheBlocks, length: int) -> None:
        """A hit offers exactly the pages of this token prefix, and is as long as the pool allows."""
        request, names = sequence.request, sequence.names
        require(length % self.world.alignment == 0, "{}: hit of {} tokens", sequence.id, length)
        require(length < request.num_tokens, "{}: hit of all {} tokens", sequence.id, length)
        expected = self._longest_hit(sequence) if self.world.enable_caching else 0
        require(length == expected, "{}: hit of {} tokens, {} possible", sequence.id, length, expected)
        self._check_replay(sequence, length)
        if not length:
            return
        self.events["hit"] += 1
        for group, (rule, ids) in enumerate(zip(self.world.groups, blocks.get_block_ids(), strict=True)):
            require(len(ids) == length // rule.block_size, "group {}: {} blocks", group, len(ids))
            needed = set(rule.needed_blocks(length))
            for index, block in enumerate(ids):
                require(block != 0 or index not in needed, "group {}: hit lacks block {}", group, index)
                require(
                    block == 0 or self.pages.holds(block, group, names, index),
                    "group {}: page {} is not block {} of the prefix",
                    group,
                    block,
                    index,
                )
                if block == 0 and not any(
                    self.pages.holds(other, group, names, index) for other in range(1, self.world.num_blocks)
                ):
                    self.events["hit across a middle that is gone"] += 1

    def _longest_hit(self, sequence: Sequence) -> int:
        """Longest aligned prefix whose needed pages are all hashed, by asking the pool for each."""
        request, pool, world = sequence.request, self.pool, self.world
        hashes = [
            resolve_block_hashes(request.block_hashes, pool.hash_block_size, rule.block_size)
            for rule in world.groups
        ]

        def available(length: int) -> bool:
            for group, rule in enumerate(world.groups):
                needed = rule.hit_blocks(length)
                if any(pool.get_cached_block(hashes[group][i], [group]) is None for i in needed):
                    return False
            return True

        top = (request.num_tokens - 1) // world.alignment * world.alignment
        return next((length for length in range(top, 0, -world.alignment) if available(length)), 0)

    def note_replayable(self, share: Scheduled) -> None:
        """A prompt is computed: while its pages last, who sends it again must hit up to its last aligned token."""
        request, names = share.sequence.request, share.sequence.names
        end = (request.num_prompt_tokens - 1) // self.world.alignment * self.world.alignment
        if not self.world.enable_caching or not end or request.status != RequestStatus.RUNNING:
            return
        needed = [
            [(index, table[index], self.pages.times_taken[table[index]]) for index in rule.hit_blocks(end)]
            for rule, table in zip(self.world.groups, share.tables, strict=True)
        ]
        if all(
            block and self.pages.holds(block, group, names, index)
            for group, row in enumerate(needed)
            for index, block, _ in row
        ):
            self.replayable[names[end - 1]] = needed

    def _check_replay(self, sequence: Sequence, length: int) -> None:
        last = (sequence.request.num_tokens - 1) // self.world.alignment * self.world.alignment
        for end in range(last, length, -self.world.alignment):
            needed = self.replayable.get(sequence.names[end - 1], [[(0, 0, 0)]])
            intact = all(
                block not in self.forgotten
                and self.pages.times_taken[block] == taken
                and self.pages.holds(block, group, sequence.names, index)
                for group, row in enumerate(needed)
                for index, block, taken in row
            )
            require(not intact, "{}: hit {} of {} replayed tokens", sequence.id, length, end)
        self.events["replayed prompt"] += length > 0 and sequence.names[length - 1] in self.replayable
