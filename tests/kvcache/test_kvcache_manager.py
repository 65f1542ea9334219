"""The sink-window manager method by method; its interleavings with everything else are in tests/property."""

from typing import Any

import pytest
import torch
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import KVCacheBlock, make_block_hash_with_group_id

from vllm_redknot.kvcache.manager import SinkWindowManager
from vllm_redknot.kvcache.spec import SinkWindowSpec

BLOCK = 4
HASHES = [bytes([index]) * 32 for index in range(20)]


def spec(window: int = 8, sink: int = 5) -> SinkWindowSpec:
    """Two sink blocks (5 tokens of 4 per block) and a window of 8 tokens."""
    return SinkWindowSpec(
        block_size=BLOCK,
        num_kv_heads=1,
        head_size=8,
        dtype=torch.float32,
        sliding_window=window,
        num_sink_tokens=sink,
    )


def manager(pool: BlockPool, rule: SinkWindowSpec | None = None, **changes: Any) -> SinkWindowManager:
    options = {"enable_caching": True, "kv_cache_group_id": 0, "scheduler_block_size": BLOCK}
    return SinkWindowManager(rule or spec(), block_pool=pool, **{**options, **changes})


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(num_gpu_blocks=40, enable_caching=True, hash_block_size=BLOCK)


def cache(pool: BlockPool, *indices: int) -> dict[int, KVCacheBlock]:
    """Hash pages for these blocks of a sequence and return them to the pool, where a hit finds them."""
    blocks = dict(zip(indices, pool.get_new_blocks(len(indices)), strict=True))
    for index, block in blocks.items():
        key = make_block_hash_with_group_id(HASHES[index], 0)
        block.set_block_hash(key, num_tokens=(index + 1) * BLOCK)
        pool.cached_block_hash_to_block.insert(key, block)
    pool.free_blocks(blocks.values())
    return blocks


def hit(pool: BlockPool, max_length: int, rule: SinkWindowSpec | None = None, **changes: Any) -> list[int]:
    """Block ids of the longest hit; 0 is the null block."""
    options = {"drop_eagle_block": False, "alignment_tokens": BLOCK, **changes}
    (blocks,), length = SinkWindowManager.find_longest_cache_hit(
        HASHES, max_length, [0], pool, rule or spec(), **options
    )
    assert length == len(blocks) * BLOCK
    return [block.block_id for block in blocks]


def held(served: SinkWindowManager) -> list[bool]:
    return [not block.is_null for block in served.req_to_blocks["r"]]


def test_the_middle_is_dropped_and_the_sinks_stay(pool: BlockPool) -> None:
    served = manager(pool)
    served.allocate_new_blocks("r", 40, 40)
    free = pool.get_num_free_blocks()
    served.remove_skipped_blocks("r", 29)
    # Token 29 sees 22 to 29; block 5 has tokens 20 to 23.
    assert held(served) == [True, True, False, False, False, True, True, True, True, True]
    assert pool.get_num_free_blocks() == free + 3


def test_a_window_that_begins_a_block_keeps_the_block_before_it(pool: BlockPool) -> None:
    served = manager(pool)
    served.allocate_new_blocks("r", 40, 40)
    # Token 31 sees 24 to 31, but the scheduler may go back to token 30, which sees token 23 in block 5.
    served.remove_skipped_blocks("r", 31)
    assert held(served) == [True] * 2 + [False] * 3 + [True] * 5
    served.remove_skipped_blocks("r", 32)
    assert held(served) == [True] * 2 + [False] * 4 + [True] * 4


def test_dropping_again_or_before_the_window_moves_changes_nothing(pool: BlockPool) -> None:
    served = manager(pool)
    served.allocate_new_blocks("r", 40, 40)
    for processed in (0, 7, 12):
        served.remove_skipped_blocks("r", processed)
        assert all(held(served))
    served.remove_skipped_blocks("r", 29)
    after = list(served.req_to_blocks["r"])
    served.remove_skipped_blocks("r", 29)
    served.remove_skipped_blocks("r", 20)
    assert served.req_to_blocks["r"] == after


def test_dropping_for_a_request_without_blocks_makes_none(pool: BlockPool) -> None:
    served = manager(pool)
    served.remove_skipped_blocks("r", 29)
    assert "r" not in served.req_to_blocks


def test_dropping_stops_at_the_blocks_there_are(pool: BlockPool) -> None:
    served = manager(pool)
    served.allocate_new_blocks("r", 16, 16)
    served.remove_skipped_blocks("r", 400)
    assert held(served) == [True, True, False, False]


def test_a_hit_has_sinks_nothing_and_the_window(pool: BlockPool) -> None:
    blocks = cache(pool, 0, 1, 7, 8)
    expected = [blocks[0].block_id, blocks[1].block_id, 0, 0, 0, 0, 0, blocks[7].block_id, blocks[8].block_id]
    assert hit(pool, 60) == expected


@pytest.mark.parametrize(
    ("cached", "length"),
    [
        ((1, 7, 8), 0),  # no first sink: nothing before it either
        ((0, 7, 8), 1),  # no second sink: what is left is the run before it
        ((0, 1, 8), 2),  # half a window
        ((0, 1, 2, 7, 8), 9),
        ((0, 1, 2, 8), 3),
        ((0, 1), 2),
        ((), 0),
    ],
)
def test_a_hit_is_as_long_as_its_sinks_and_window_allow(
    pool: BlockPool, cached: tuple[int, ...], length: int
) -> None:
    cache(pool, *cached)
    assert len(hit(pool, 60)) == length


def test_a_hit_is_no_longer_than_asked_for(pool: BlockPool) -> None:
    cache(pool, *range(12))
    assert len(hit(pool, 47)) == 11
    assert len(hit(pool, 7)) == 1
    assert hit(pool, 3) == []


def test_a_hit_ends_where_groups_of_larger_blocks_can_end(pool: BlockPool) -> None:
    cache(pool, *range(11))
    assert len(hit(pool, 60, alignment_tokens=2 * BLOCK)) == 10


def test_a_hit_is_for_all_groups_of_the_spec_or_none(pool: BlockPool) -> None:
    cache(pool, 0, 1, 7, 8)
    groups, length = SinkWindowManager.find_longest_cache_hit(HASHES, 60, [0, 1], pool, spec(), False, BLOCK)
    assert (groups, length) == (([], []), 0)


def test_without_sinks_a_hit_is_the_base_classes(pool: BlockPool) -> None:
    blocks = cache(pool, 7, 8)
    assert hit(pool, 60, spec(sink=0)) == [0] * 7 + [blocks[7].block_id, blocks[8].block_id]


def test_a_hit_takes_a_reference_to_sinks_and_window(pool: BlockPool) -> None:
    cache(pool, 0, 1, 7, 8)
    (blocks,), length = SinkWindowManager.find_longest_cache_hit(
        HASHES, 60, [0], pool, spec(), drop_eagle_block=False, alignment_tokens=BLOCK
    )
    served, free = manager(pool), pool.get_num_free_blocks()
    # 36 tokens are there; 4 evictable pages leave the free list, and 2 new ones take tokens 36 to 43.
    assert served.get_num_blocks_to_allocate("r", 44, blocks, length, length, 44) == 6
    served.add_local_computed_blocks("r", blocks, length, 0)
    assert served.req_to_blocks["r"] == blocks
    assert [block.ref_cnt for block in blocks if not block.is_null] == [1] * 4
    assert len(served.allocate_new_blocks("r", 44, 44)) == 2
    assert pool.get_num_free_blocks() == free - 6
    served.free("r")
    assert pool.get_num_free_blocks() == free


def test_pages_another_request_holds_cost_a_hit_nothing(pool: BlockPool) -> None:
    cache(pool, 0, 1, 7, 8)
    (blocks,), length = SinkWindowManager.find_longest_cache_hit(
        HASHES, 60, [0], pool, spec(), drop_eagle_block=False, alignment_tokens=BLOCK
    )
    served = manager(pool)
    served.add_local_computed_blocks("r", blocks, length, 0)
    assert served.get_num_blocks_to_allocate("s", 44, blocks, length, length, 44) == 2


def test_tokens_of_a_connector_get_sinks_and_window(pool: BlockPool) -> None:
    served, free = manager(pool, needs_kv_cache_zeroing=True), pool.get_num_free_blocks()
    # Window of token 40: 33 to 40, and token 32 in case the scheduler goes back: blocks 8 and 9, and two sinks.
    assert served.get_num_blocks_to_allocate("r", 40, [], 40, 0, 40) == 4
    served.add_local_computed_blocks("r", [], 0, 40)
    served.allocate_external_computed_blocks("r", 0, 40)
    assert held(served) == [True, True] + [False] * 6 + [True, True]
    assert pool.get_num_free_blocks() == free - 4
    assert sorted(served.new_block_ids) == sorted(
        block.block_id for block in served.req_to_blocks["r"] if not block.is_null
    )


def test_a_connector_that_writes_the_pages_itself_asks_for_no_zeroing(pool: BlockPool) -> None:
    served = manager(pool, needs_kv_cache_zeroing=True)
    served.add_local_computed_blocks("r", [], 0, 40)
    served.allocate_external_computed_blocks("r", 0, 40, record_for_zeroing=False)
    assert served.new_block_ids == []


def test_sinks_of_the_local_hit_stay_and_a_connector_adds_the_rest(pool: BlockPool) -> None:
    cached = cache(pool, 0)
    served = manager(pool)
    assert served.get_num_blocks_to_allocate("r", 40, [cached[0]], 40, 4, 40) == 4
    served.add_local_computed_blocks("r", [cached[0]], 4, 36)
    served.allocate_external_computed_blocks("r", 4, 36)
    assert served.req_to_blocks["r"][0] is cached[0]
    assert held(served) == [True, True] + [False] * 6 + [True, True]
    # The second sink is not hashed yet, so caching goes on from there.
    assert served.num_cached_block["r"] == 1


def test_a_running_requests_sinks_are_not_counted_again_without_prefix_caching() -> None:
    pool = BlockPool(num_gpu_blocks=40, enable_caching=False, hash_block_size=BLOCK)
    served = manager(pool, enable_caching=False)
    served.allocate_new_blocks("r", 40, 40)
    served.remove_skipped_blocks("r", 40)
    assert served.get_num_blocks_to_allocate("r", 41, [], 40, 40, 41) == 1


def test_the_admission_cap_holds_for_a_long_request(pool: BlockPool) -> None:
    cap = spec().max_admission_blocks_per_request(4, 1000)
    served = manager(pool, max_admission_blocks_per_request=cap)
    assert served.get_num_blocks_to_allocate("r", 900, [], 0, 0, 900, apply_admission_cap=True) == cap == 6
    assert served.get_num_blocks_to_allocate("r", 900, [], 0, 0, 900) == 225


def mask(rule: SinkWindowSpec, start: int, end: int, **changes: Any) -> list[bool] | None:
    options = {"alignment_tokens": BLOCK, "use_eagle": False, **changes}
    return SinkWindowManager.reachable_block_mask(start, end, kv_cache_spec=rule, **options)


def test_dense_retention_hashes_every_block() -> None:
    assert mask(spec(), 0, 10) is None


def test_sparse_retention_hashes_sinks_and_the_window_before_the_prompts_end() -> None:
    result = mask(spec(), 0, 10, retention_interval=0, reachable_boundaries=(38,))
    assert result == [True, True] + [False] * 5 + [True, True, False]


@pytest.mark.parametrize(("start", "sinks"), [(0, 2), (1, 1), (2, 0), (3, 0)])
def test_a_mask_that_starts_later_has_the_sinks_that_are_left(start: int, sinks: int) -> None:
    result = mask(spec(), start, 6, retention_interval=0)
    assert result == [True] * sinks + [False] * (6 - start - sinks)


def test_a_mask_that_ends_inside_the_sinks_has_only_those() -> None:
    assert mask(spec(sink=20), 0, 3, retention_interval=0) == [True] * 3


def test_a_window_of_one_token_is_hashed_where_a_hit_looks_it_up(pool: BlockPool) -> None:
    assert mask(spec(window=1, sink=0), 0, 4, alignment_tokens=2 * BLOCK) == [False, True, False, True]
    cache(pool, 3)
    assert len(hit(pool, 60, spec(window=1, sink=0), alignment_tokens=2 * BLOCK)) == 4
