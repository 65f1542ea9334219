"""vLLM's real KV-cache manager with sink-window groups, in random interleavings, against a dict model.

A failure prints its seed, its set-up and the command that replays it. More seeds: python tests/property/kv_simulator.py
--seed 1000 --seeds 5000
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from kv_model import InvariantError
from kv_simulator import simulate
from kv_world import served_by
from vllm.v1.core.kv_cache_utils import KVCacheBlock, resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager, SlidingWindowManager

from vllm_redknot.kvcache.manager import SinkWindowManager

COVERED = {
    "a pending step kept a block alive",
    "abort",
    "asynchronous load",
    "deferred free",
    "eviction",
    "finished",
    "hash forgotten",
    "hit",
    "hit across a middle that is gone",
    "load failed",
    "middle dropped",
    "mixed batch",
    "no room",
    "page shared",
    "preemption",
    "preemption must wait",
    "preemption with a step in flight",
    "replayed prompt",
    "resumed with a hit",
    "stale output",
    "synchronous load",
    "whole prompt loaded",
}
"""What the default seeds must meet at least ten times each, so that the simulation cannot quietly become easy."""

Blocks = Sequence[KVCacheBlock]


def run_seeds(seeds: range) -> Counter[str]:
    events: Counter[str] = Counter()
    for seed in seeds:
        events += simulate(seed)
    return events


def test_thousands_of_random_steps_keep_every_invariant() -> None:
    events = run_seeds(range(200))
    rare = {name: events[name] for name in COVERED if events[name] < 10}
    assert not rare, f"the simulation hardly meets {rare}"
    assert events.keys() == COVERED, "an event is counted that is not asked for"


@pytest.mark.slow
def test_thirty_thousand_more_random_steps_keep_every_invariant() -> None:
    run_seeds(range(200, 400))


class FreesSinks(SinkWindowManager):
    remove_skipped_blocks = SlidingWindowManager.remove_skipped_blocks


class KeepsTheMiddle(SinkWindowManager):
    def remove_skipped_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Drop nothing."""


class DropsOneBlockTooMany(SinkWindowManager):
    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        skipped = super().get_num_skipped_tokens(num_computed_tokens)
        return skipped + self.block_size if skipped else 0


class DropsWhatAPendingStepReads(SinkWindowManager):
    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        allocated = len(self.req_to_blocks.get(request_id, ())) * self.block_size
        optimistic = max(processed_computed_tokens, allocated - self.block_size)
        super().remove_skipped_blocks(request_id, optimistic, num_prompt_tokens)


class TakesTheWindowOfTheNextTokenOnly(SinkWindowManager):
    get_num_skipped_tokens = SlidingWindowManager.get_num_skipped_tokens


class CountsNoSinks(SinkWindowManager):
    get_num_blocks_to_allocate = SingleTypeKVCacheManager.get_num_blocks_to_allocate


class CountsSinksAgainWithoutCaching(SinkWindowManager):
    def get_num_blocks_to_allocate(self, request_id: str, *args: Any, **kwargs: Any) -> int:
        count = super().get_num_blocks_to_allocate(request_id, *args, **kwargs)
        again = request_id not in self.num_cached_block and len(self.req_to_blocks.get(request_id, ())) > 4
        return count + self.num_sink_blocks * again


class CountsNoEvictableSinks(SinkWindowManager):
    @classmethod
    def _get_num_evictable_blocks(cls, blocks: Blocks) -> int:
        return 0 if len(blocks) == 1 else SlidingWindowManager._get_num_evictable_blocks(blocks)


class LosesSinksOfAHit(SinkWindowManager):
    add_local_computed_blocks = SingleTypeKVCacheManager.add_local_computed_blocks


class TakesSinksOfAHitWithoutAReference(SinkWindowManager):
    def add_local_computed_blocks(self, request_id: str, new_computed_blocks: Blocks, *args: Any) -> None:
        super().add_local_computed_blocks(request_id, new_computed_blocks, *args)
        for block in self.req_to_blocks[request_id][: self.num_sink_blocks]:
            if not block.is_null and block.ref_cnt > 1:
                block.ref_cnt -= 1


class LeavesOutSinksOfALoad(SinkWindowManager):
    allocate_external_computed_blocks = SingleTypeKVCacheManager.allocate_external_computed_blocks


class NeverHashesSinksOfALoad(SinkWindowManager):
    def allocate_external_computed_blocks(self, request_id: str, *args: Any, **kwargs: Any) -> None:
        cached = self.num_cached_block[request_id]
        super().allocate_external_computed_blocks(request_id, *args, **kwargs)
        self.num_cached_block[request_id] = cached


class NeverHashesSinks(SinkWindowManager):
    reachable_block_mask = SlidingWindowManager.reachable_block_mask


class NeverHashesAOneTokenWindow(SinkWindowManager):
    _contiguous_blocks_for_hit = SlidingWindowManager._contiguous_blocks_for_hit


class HitsWithoutSinks(SinkWindowManager):
    find_longest_cache_hit = SlidingWindowManager.find_longest_cache_hit


class HitsPastAMissingSink(SinkWindowManager):
    @classmethod
    def find_longest_cache_hit(cls, **options: Any) -> Any:
        groups, length = super(SinkWindowManager, cls).find_longest_cache_hit(**options)
        pool, spec = options["block_pool"], options["kv_cache_spec"]
        hashes = resolve_block_hashes(options["block_hashes"], pool.hash_block_size, spec.block_size)
        for index in range(min(spec.num_sink_blocks, len(groups[0]))):
            for blocks, group in zip(groups, options["kv_cache_group_ids"], strict=True):
                cached = pool.get_cached_block(hashes[index], [group])
                blocks[index] = cached[0] if cached else pool.null_block
        return groups, length


class HitsWithTheWrongSink(SinkWindowManager):
    @classmethod
    def find_longest_cache_hit(cls, *args: Any, **kwargs: Any) -> Any:
        groups, length = super().find_longest_cache_hit(*args, **kwargs)
        for blocks in groups:
            if len(blocks) > 1:
                blocks[0] = blocks[-1]
        return groups, length


class RoundsSinksDown(SinkWindowManager):
    def __init__(self, kv_cache_spec: Any, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.num_sink_blocks = kv_cache_spec.num_sink_tokens // kv_cache_spec.block_size


@pytest.mark.parametrize(
    ("broken", "symptom"),
    [
        (FreesSinks, "was dropped|null"),
        (KeepsTheMiddle, "was kept"),
        (DropsOneBlockTooMany, "was dropped|null"),
        (DropsWhatAPendingStepReads, "was dropped|left group|does not hold|null"),
        (TakesTheWindowOfTheNextTokenOnly, "must read block"),
        (CountsNoSinks, "predicted|Cannot get"),
        (CountsSinksAgainWithoutCaching, "predicted"),
        (CountsNoEvictableSinks, "predicted"),
        (LosesSinksOfAHit, "predicted|was dropped|null"),
        (TakesSinksOfAHitWithoutAReference, "references"),
        (LeavesOutSinksOfALoad, "predicted|was dropped|null"),
        (NeverHashesSinksOfALoad, "replayed tokens"),
        (NeverHashesSinks, "replayed tokens"),
        (NeverHashesAOneTokenWindow, "replayed tokens"),
        (HitsWithoutSinks, "possible|lacks block"),
        (HitsPastAMissingSink, "0 possible|lacks block"),
        (HitsWithTheWrongSink, "is not block 0"),
        (RoundsSinksDown, "was dropped|lacks block|predicted"),
    ],
)
def test_the_simulation_notices_a_manager_that(broken: type[SinkWindowManager], symptom: str) -> None:
    with served_by(broken), pytest.raises(InvariantError, match=symptom):
        run_seeds(range(100))
