"""Block manager of local KV heads: keeps the sink blocks and the window's blocks, returns the middle to the pool.

A request's block list has the form ``[sink blocks, null ..., window blocks]``. The base class assumes that
everything before the window is null, so every method that counts or drops "skipped" blocks is told here that sinks
are not skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import BlockHashList, KVCacheBlock, resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import KVCacheSpec

from vllm_redknot.kvcache.spec import SinkWindowSpec
from vllm_redknot.rows.block_hashes import shared_tokens


class SinkWindowManager(SlidingWindowManager):
    """`SlidingWindowManager` for `SinkWindowSpec` groups."""

    def __init__(self, kv_cache_spec: SinkWindowSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self.num_sink_blocks = kv_cache_spec.num_sink_blocks

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Tokens before the window of the next token, or of the one before it.

        When a KV connector brings a whole prompt, the scheduler takes the last token back to compute its logits, after
        the blocks before the next token's window were dropped.
        """
        return max(0, int(super().get_num_skipped_tokens(num_computed_tokens)) - 1)

    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        apply_admission_cap: bool = False,
        prefill_end: int = 0,
    ) -> int:
        """Blocks to take from the pool: the base class's count and, for a request's first allocation, its sinks."""
        count = super().get_num_blocks_to_allocate(
            request_id,
            num_tokens,
            new_computed_blocks,
            total_computed_tokens,
            num_local_computed_tokens,
            num_tokens_main_model,
            apply_admission_cap=apply_admission_cap,
            prefill_end=prefill_end,
        )
        # With prefix caching off a request is never in `num_cached_block`; its sinks are there all the same.
        if request_id in self.num_cached_block or self.req_to_blocks.get(request_id):
            return int(count)
        skipped = self._skipped_blocks(total_computed_tokens)
        sinks = new_computed_blocks[: min(self.num_sink_blocks, skipped)]
        missing = min(self.num_sink_blocks, skipped) - len(sinks)
        return int(count) + self._get_num_evictable_blocks(sinks) + missing

    def add_local_computed_blocks(
        self,
        request_id: str,
        new_computed_blocks: Sequence[KVCacheBlock],
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
    ) -> None:
        """Adopt a prefix-cache hit: sinks and window are taken, the middle becomes null.

        Sinks that the hit lacks (they come from a KV connector) become null here and are allocated by
        `allocate_external_computed_blocks`.
        """
        super().add_local_computed_blocks(
            request_id, new_computed_blocks, num_local_computed_tokens, num_external_computed_tokens
        )
        skipped = self._skipped_blocks(num_local_computed_tokens + num_external_computed_tokens)
        sinks = list(new_computed_blocks[: min(self.num_sink_blocks, skipped)])
        if self.enable_caching:
            self.block_pool.touch(sinks)
        self.req_to_blocks[request_id][: len(sinks)] = sinks

    def allocate_external_computed_blocks(
        self,
        request_id: str,
        num_local_computed_tokens: int,
        num_external_computed_tokens: int,
        record_for_zeroing: bool = True,
    ) -> None:
        """Allocate blocks for tokens a KV connector brings, sinks before a skipped middle included."""
        super().allocate_external_computed_blocks(
            request_id, num_local_computed_tokens, num_external_computed_tokens, record_for_zeroing
        )
        blocks = self.req_to_blocks[request_id]
        empty = [i for i, block in enumerate(blocks[: self.num_sink_blocks]) if block is self._null_block]
        if empty:
            # The base class takes skipped blocks for cached ones, and would never hash these sinks.
            self.num_cached_block[request_id] = empty[0]
        for index, block in zip(empty, self.block_pool.get_new_blocks(len(empty)), strict=True):
            blocks[index] = block
            if self.records_new_block_ids and record_for_zeroing:
                self.new_block_ids.append(block.block_id)

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Return to the pool every block that lies wholly between the sinks and the window of the next token."""
        del num_prompt_tokens
        skipped = self._skipped_blocks(processed_computed_tokens)
        if skipped > self.num_sink_blocks:
            self._remove_blocks_in_range(request_id, self.num_sink_blocks, skipped)

    def cache_blocks(
        self,
        request: Any,
        num_tokens: int,
        retention_interval: int | None = None,
        *,
        replay_boundaries: Sequence[int],
    ) -> None:
        """Hash the request's full blocks, the window before the point a longer prompt may resume at included."""
        if shared := shared_tokens(request):
            replay_boundaries = (*replay_boundaries, shared)
        super().cache_blocks(request, num_tokens, retention_interval, replay_boundaries=replay_boundaries)

    @classmethod
    def _contiguous_blocks_for_hit(cls, window_size: int, block_size: int, use_eagle: bool) -> int:
        """Window blocks before the end of a hit: at least one, which the base class looks up but does not hash."""
        return max(1, int(super()._contiguous_blocks_for_hit(window_size, block_size, use_eagle)))

    @classmethod
    def reachable_block_mask(
        cls,
        start_block: int,
        end_block: int,
        alignment_tokens: int | None,
        kv_cache_spec: KVCacheSpec,
        use_eagle: bool,
        retention_interval: int | None = None,
        reachable_boundaries: Sequence[int] = (),
        dcp_world_size: int = 1,
        final_segment_end_block: int | None = None,
    ) -> list[bool] | None:
        """Which blocks to hash: those a sliding window could hit, and every sink block."""
        mask = super().reachable_block_mask(
            start_block,
            end_block,
            alignment_tokens,
            kv_cache_spec,
            use_eagle,
            retention_interval,
            reachable_boundaries,
            dcp_world_size,
            final_segment_end_block,
        )
        if mask is None:
            return None
        assert isinstance(kv_cache_spec, SinkWindowSpec)
        for index in range(start_block, min(end_block, kv_cache_spec.num_sink_blocks)):
            mask[index - start_block] = True
        return mask

    @classmethod
    def find_longest_cache_hit(
        cls,
        block_hashes: BlockHashList,
        max_length: int,
        kv_cache_group_ids: list[int],
        block_pool: BlockPool,
        kv_cache_spec: KVCacheSpec,
        drop_eagle_block: bool,
        alignment_tokens: int,
        dcp_world_size: int = 1,
        pcp_world_size: int = 1,
    ) -> tuple[tuple[list[KVCacheBlock], ...], int]:
        """Longest prefix whose sink blocks and whose window before its end are all cached.

        Returns:
            Per group ``[sink blocks, null ..., window blocks]``, and the length in tokens.
        """
        assert isinstance(kv_cache_spec, SinkWindowSpec)
        hashes = resolve_block_hashes(
            block_hashes,
            block_pool.hash_block_size,
            kv_cache_spec.block_size,
            supports_fine_grained_hash_lookup=cls.supports_fine_grained_hash_lookup,
            alignment_tokens=alignment_tokens,
        )
        sinks: list[Sequence[KVCacheBlock]] = []
        for index in range(min(kv_cache_spec.num_sink_blocks, max_length // kv_cache_spec.block_size)):
            cached = block_pool.get_cached_block(hashes[index], kv_cache_group_ids)
            if not cached:
                # A later block cannot be used without its sinks: what is left is the run before this one.
                max_length = index * kv_cache_spec.block_size
                break
            sinks.append(cached)
        blocks, hit_length = super().find_longest_cache_hit(
            block_hashes,
            max_length,
            kv_cache_group_ids,
            block_pool,
            kv_cache_spec,
            drop_eagle_block,
            alignment_tokens,
            dcp_world_size,
            pcp_world_size,
        )
        for index, cached in enumerate(sinks[: len(blocks[0])]):
            for group_blocks, block in zip(blocks, cached, strict=True):
                group_blocks[index] = block
        return blocks, hit_length

    def _skipped_blocks(self, num_computed_tokens: int) -> int:
        """Whole blocks before the window of the token at position `num_computed_tokens`."""
        return int(self.get_num_skipped_tokens(num_computed_tokens)) // int(self.block_size)
