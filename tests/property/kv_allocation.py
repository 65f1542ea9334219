"""`allocate_slots` under watch: what it predicts, takes, drops and hands out, against the model."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kv_hits import HitOracle
from kv_model import Pages, Sequence, require
from kv_world import World
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager


class WatchedAllocation:
    """Allocates through the real manager and takes the result over into the model."""

    def __init__(
        self, world: World, kv: KVCacheManager, pages: Pages, hits: HitOracle, events: Counter[str]
    ) -> None:
        self.world, self.kv, self.pages, self.hits, self.events = world, kv, pages, hits, events
        self.caps = [
            group.kv_cache_spec.max_admission_blocks_per_request(
                world.max_in_flight_tokens, world.max_model_len
            )
            if rule.window is not None
            else -(-world.max_model_len // rule.block_size)
            for group, rule in zip(world.group_specs, world.groups, strict=True)
        ]
        self.predicted: tuple[int, int] | None = None
        self._watch()

    def tables(self, sequence: Sequence) -> list[list[int]]:
        """The real block tables, as block ids."""
        return [
            [block.block_id for block in blocks] for blocks in self.kv.coordinator.get_blocks(sequence.id)
        ]

    def allocate(
        self,
        sequence: Sequence,
        tokens: int,
        blocks: KVCacheBlocks | None = None,
        local: int = 0,
        external: int = 0,
        asynchronous: bool = False,
        others_run: bool = True,
    ) -> bool:
        """`allocate_slots`, its prediction and its result against the model."""
        request, world = sequence.request, self.world
        first = blocks is not None and request.num_computed_tokens == 0
        before = self.pages.tables.get(sequence.id)
        total = request.num_computed_tokens + local + external
        self.predicted = None
        result = self.kv.allocate_slots(
            request,
            tokens,
            num_new_computed_tokens=local,
            new_computed_blocks=blocks,
            num_external_computed_tokens=external,
            delay_cache_blocks=asynchronous,
            full_sequence_must_fit=blocks is not None and world.full_sequence_must_fit,
            has_scheduled_reqs=others_run,
        )
        real = self.tables(sequence)
        if before is not None and self.predicted is not None:
            self._note_drop(sequence, max(0, total - request.num_in_flight_tokens), before)
        if before is not None:
            # What was dropped may have been handed out again in the same call.
            self.pages.tables[sequence.id] = before = [
                [old if new else 0 for old, new in zip(*rows, strict=False)]
                for rows in zip(before, real, strict=True)
            ]
        if result is None:
            require((before or real) == real, "{}: a failed allocation changed the table", sequence.id)
            alone = not (self.pages.tables.keys() - {sequence.id}) and not +self.pages.deferred
            require(not alone, "{} has the pool to itself and does not fit: {}", sequence.id, self.predicted)
            self.events["no room"] += 1
            return False
        predicted, free = self.predicted or (0, 0)
        taken = free - self.kv.block_pool.get_num_free_blocks()
        require(taken == predicted, "{}: {} blocks predicted, {} taken", sequence.id, predicted, taken)
        hit = blocks.get_block_ids() if blocks is not None else tuple([] for _ in world.groups)
        self._adopt(sequence, before, real, hit, total if first else None)
        self.pages.check_table(sequence.id, real, min(total + tokens, world.max_model_len), self.caps)
        return True

    def _adopt(
        self,
        sequence: Sequence,
        before: list[list[int]] | None,
        real: list[list[int]],
        hit: tuple[list[int], ...],
        first_total: int | None,
    ) -> None:
        """Take new pages over into the model; only they and the hit's pages may have appeared."""
        before = before or [[] for _ in real]
        for group, blocks in enumerate(real):
            for index, block in enumerate(blocks):
                old = before[group][index] if index < len(before[group]) else None
                if not block or block == old:
                    continue
                require(not old, "{}: page {} was replaced by {}", sequence.id, old, block)
                if index < len(hit[group]) and hit[group][index] == block:
                    self.events["page shared"] += 1
                else:
                    require(
                        old is None or first_total is not None, "{}: a null became {}", sequence.id, block
                    )
                    self.pages.take(block, group)
                    self.hits.forgotten.discard(block)
        self.pages.tables[sequence.id] = real
        if first_total is not None:
            self.pages.dropped[sequence.id] = first_total

    def _note_drop(self, sequence: Sequence, processed: int, before: list[list[int]]) -> None:
        """`allocate_slots` dropped what is before the windows of the next token to be settled."""
        dropped = self.pages.dropped
        dropped[sequence.id] = max(dropped[sequence.id], processed)
        in_flight = sequence.request.num_in_flight_tokens
        for rule, blocks in zip(self.world.groups, before, strict=True):
            kept = rule.first_window_token(processed) // rule.block_size
            eager = rule.first_window_token(processed + in_flight) // rule.block_size
            if any(blocks[max(kept, rule.sink_blocks) : eager]):
                self.events["a pending step kept a block alive"] += 1
            if any(blocks[rule.sink_blocks : kept]):
                self.events["middle dropped"] += 1

    def _watch(self) -> None:
        """Record each count of blocks to allocate beside the free blocks then, and each eviction."""
        count, evict = (
            self.kv.coordinator.get_num_blocks_to_allocate,
            self.kv.block_pool._maybe_evict_cached_block,
        )

        def counted(*args: Any, **kwargs: Any) -> int:
            result = int(count(*args, **kwargs))
            if not kwargs.get("apply_admission_cap"):
                self.predicted = result, self.kv.block_pool.get_num_free_blocks()
            return result

        def evicting(block: Any) -> bool:
            evicted = bool(evict(block))
            self.events["eviction"] += evicted
            return evicted

        self.kv.coordinator.get_num_blocks_to_allocate = counted
        self.kv.block_pool._maybe_evict_cached_block = evicting
