"""Pages of a request whose next tokens are skipped: local heads get none for what no later token sees."""

from __future__ import annotations

from typing import Any

from vllm_redknot.kvcache.manager import SinkWindowManager


def make_room(coordinator: Any, request_id: str, end: int) -> bool:
    """Bring the block lists of a request's local heads to where `end` tokens are computed, with nothing in flight.

    Blocks between the sinks and the window of the token at `end` are returned or never taken. vLLM then allocates the
    rest, as for a chunk that ends there. Left to itself it would take every block of the span, beyond what it counted
    the request for.

    Args:
        coordinator: vLLM's KV-cache coordinator.
        request_id: a running request.
        end: computed tokens after the skip.

    Returns:
        False, with nothing changed, where the pool has no blocks for sinks.
    """
    managers = [m for m in coordinator.single_type_managers if isinstance(m, SinkWindowManager)]
    missing = {m.kv_cache_group_id: _missing_sinks(m, request_id, end) for m in managers}
    pool = coordinator.block_pool
    if sum(missing.values()) > pool.get_num_free_blocks():
        return False
    for manager in managers:
        blocks = manager.req_to_blocks[request_id]
        skipped, sinks = _skipped_blocks(manager, end), manager.num_sink_blocks
        manager._remove_blocks_in_range(request_id, sinks, min(skipped, len(blocks)))
        new = pool.get_new_blocks(missing[manager.kv_cache_group_id])
        blocks.extend(new)
        if manager.records_new_block_ids:
            manager.new_block_ids.extend(block.block_id for block in new)
        blocks.extend([pool.null_block] * (skipped - len(blocks)))
    return True


def _skipped_blocks(manager: SinkWindowManager, end: int) -> int:
    """Whole blocks before the window of the token at `end`."""
    return int(manager.get_num_skipped_tokens(end)) // int(manager.block_size)


def _missing_sinks(manager: SinkWindowManager, request_id: str, end: int) -> int:
    """Sink blocks that are neither there nor part of what vLLM allocates."""
    needed = min(manager.num_sink_blocks, _skipped_blocks(manager, end))
    return max(0, needed - len(manager.req_to_blocks[request_id]))
