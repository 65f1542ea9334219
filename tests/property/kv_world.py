"""A random serving set-up: head segments, pool, scheduler limits, and vLLM's real KV-cache manager for it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from vllm.utils.hashing import sha256
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheSpec
from vllm.v1.kv_cache_spec_registry import _REGISTRY_KVCACHESPEC_LIST, KVCacheSpecRegistry

from vllm_redknot.kvcache.manager import SinkWindowManager
from vllm_redknot.kvcache.registration import register_spec
from vllm_redknot.kvcache.segment_groups import group_segments
from vllm_redknot.kvcache.spec import SinkWindowSpec

# Once: `served_by` puts another class in its place for a while.
register_spec()

PAGE = {"num_kv_heads": 1, "head_size": 8, "dtype": torch.bfloat16}


@dataclass(frozen=True)
class GroupRule:
    """What a group must keep, in tokens, written down without the spec classes' help."""

    block_size: int
    window: int | None
    sink: int

    @property
    def sink_blocks(self) -> int:
        return 0 if self.window is None else -(-self.sink // self.block_size)

    def first_window_token(self, query: int) -> int:
        """First token the window of the query at this position reaches."""
        return 0 if self.window is None else max(0, query - self.window + 1)

    def needed_blocks(self, length: int) -> list[int]:
        """Blocks that must be there to compute the token at position `length`: sinks, and the window before it."""
        blocks = range(-(-length // self.block_size))
        first = self.first_window_token(length)
        return [
            b
            for b in blocks
            if self.window is None or b * self.block_size < self.sink or (b + 1) * self.block_size > first
        ]

    def hit_blocks(self, length: int) -> list[int]:
        """Blocks a prefix-cache hit of `length` tokens must find: the needed ones, and the last to prove the prefix."""
        return sorted({*self.needed_blocks(length), length // self.block_size - 1})


@dataclass(frozen=True)
class World:
    """One random set-up. `groups[i]` is the rule of vLLM's KV-cache group i."""

    seed: int
    groups: tuple[GroupRule, ...]
    group_specs: tuple[KVCacheGroupSpec, ...]
    num_blocks: int
    max_model_len: int
    max_batched_tokens: int
    concurrent_batches: int
    enable_caching: bool
    retention_interval: int | None
    defer_block_free: bool
    full_sequence_must_fit: bool
    drop_stale_output: bool
    external_share: float
    max_requests: int

    @property
    def max_in_flight_tokens(self) -> int:
        return self.concurrent_batches * self.max_batched_tokens

    @property
    def alignment(self) -> int:
        """Tokens a prefix-cache hit is a multiple of; all block sizes divide the largest."""
        return max(rule.block_size for rule in self.groups)

    @property
    def hash_block_size(self) -> int:
        return min(rule.block_size for rule in self.groups)

    def manager(self) -> KVCacheManager:
        """vLLM's KV-cache manager, built as its scheduler builds it."""
        return KVCacheManager(
            KVCacheConfig(
                num_blocks=self.num_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=list(self.group_specs),
                prefix_cache_retention_interval=self.retention_interval,
            ),
            max_model_len=self.max_model_len,
            scheduler_block_size=self.alignment,
            hash_block_size=self.hash_block_size,
            max_in_flight_tokens=self.max_in_flight_tokens,
            enable_caching=self.enable_caching,
        )

    def block_hasher(self) -> Any:
        kv_cache_utils.init_none_hash(sha256)
        return kv_cache_utils.get_request_block_hasher(self.hash_block_size, sha256)


def random_world(seed: int) -> World:
    """The set-up of a seed."""
    rng = random.Random(seed)
    max_model_len = rng.randrange(128, 700)
    max_batched_tokens = rng.choice([16, 48, 100, 256])
    concurrent_batches = rng.choice([1, 1, 2, 2, 3])
    config = _config(rng, max_model_len, max_batched_tokens * concurrent_batches)
    specs, segments = _group_specs(rng, config)
    rules = tuple(_rule(group, segments) for group in specs)
    cap = sum(
        -(-group.kv_cache_spec.max_memory_usage_bytes(config) // group.kv_cache_spec.page_size_bytes)
        for group in specs
    )
    alignment = max(rule.block_size for rule in rules)
    sparse = any(isinstance(group.kv_cache_spec, SinkWindowSpec) for group in specs)
    return World(
        seed=seed,
        groups=rules,
        group_specs=tuple(specs),
        num_blocks=1 + int(cap * rng.choice([1.0, 1.0, 1.3, 2.0, 4.0])),
        max_model_len=max_model_len,
        max_batched_tokens=max_batched_tokens,
        concurrent_batches=concurrent_batches,
        enable_caching=rng.random() < 0.8,
        retention_interval=rng.choice([None, 0, 0, 2 * alignment]) if sparse else None,
        defer_block_free=rng.random() < 0.5,
        full_sequence_must_fit=rng.random() < 0.5,
        drop_stale_output=rng.random() < 0.5,
        external_share=rng.choice([0.0, 0.2, 0.5]),
        max_requests=rng.randrange(2, 9),
    )


def _config(rng: random.Random, max_model_len: int, max_in_flight_tokens: int) -> Any:
    """The attributes of a `VllmConfig` that grouping and the specs' arithmetic read."""
    return SimpleNamespace(
        attention_config=SimpleNamespace(backend="REDKNOT"),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        model_config=SimpleNamespace(max_model_len=max_model_len),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        max_in_flight_tokens=max_in_flight_tokens,
        additional_config={"redknot": {"max_groups": rng.randrange(1, 9)}},
    )


def _group_specs(rng: random.Random, config: Any) -> tuple[list[KVCacheGroupSpec], dict[str, KVCacheSpec]]:
    """Groups as the engine would plan them, and the segments they are made of."""
    block_size = rng.choice([16, 32])
    if rng.random() < 0.15:
        # vLLM's own grouping, for models whose pages differ, may give groups different block sizes.
        segments = {"global": FullAttentionSpec(block_size=32, **PAGE), "local": _local(rng, 16)}
        return [KVCacheGroupSpec([name], spec) for name, spec in segments.items()], segments
    count = rng.randrange(2, 40)
    global_share = rng.choice([0.0, 0.1, 0.1, 0.3, 0.6])
    kinds = [_local(rng, block_size) for _ in range(rng.randrange(1, 4))]
    segments = {
        f"segment_{i}": FullAttentionSpec(block_size=block_size, **PAGE)
        if rng.random() < global_share
        else rng.choice(kinds)
        for i in range(count)
    }
    groups = group_segments(config, segments)
    return groups or [KVCacheGroupSpec(list(segments), next(iter(segments.values())))], segments


def _local(rng: random.Random, block_size: int) -> SinkWindowSpec:
    window = rng.choice([1, 2, block_size, block_size + 1, rng.randrange(3, 150)])
    sink = rng.choice([0, 1, 4, block_size, block_size + 1, 3 * block_size + 5])
    return SinkWindowSpec(block_size=block_size, sliding_window=window, num_sink_tokens=sink, **PAGE)


def _rule(group: KVCacheGroupSpec, segments: dict[str, KVCacheSpec]) -> GroupRule:
    """What the members of a group need, asked of them and not of their merged spec."""
    spec = group.kv_cache_spec
    if not isinstance(spec, SinkWindowSpec):
        return GroupRule(spec.block_size, None, 0)
    members = [segments[name] for name in group.layer_names]
    return GroupRule(
        spec.block_size,
        max(member.sliding_window for member in members),
        max(member.num_sink_tokens for member in members),
    )


@contextmanager
def served_by(manager_class: type[SinkWindowManager]) -> Iterator[None]:
    """Let another class serve `SinkWindowSpec`, to see that the simulator notices a broken one."""
    metadata = _REGISTRY_KVCACHESPEC_LIST.pop(SinkWindowSpec)
    KVCacheSpecRegistry.register(SinkWindowSpec, manager_class, uniform_type_base_spec=SinkWindowSpec)
    try:
        yield
    finally:
        _REGISTRY_KVCACHESPEC_LIST[SinkWindowSpec] = metadata
