"""The KV-cache spec of local heads: what it reserves, how specs merge, who serves it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec, UniformTypeKVCacheSpecs
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from vllm_redknot.kvcache.manager import SinkWindowManager
from vllm_redknot.kvcache.registration import register_spec
from vllm_redknot.kvcache.spec import SinkWindowSpec

PAGE: dict[str, Any] = {"block_size": 16, "num_kv_heads": 1, "head_size": 64, "dtype": torch.bfloat16}


def local(window: int, sink: int, **changes: Any) -> SinkWindowSpec:
    return SinkWindowSpec(**{**PAGE, **changes}, sliding_window=window, num_sink_tokens=sink)


@pytest.mark.parametrize(("sink", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (100, 7)])
def test_a_block_with_one_sink_token_is_a_sink_block(sink: int, blocks: int) -> None:
    assert local(64, sink).num_sink_blocks == blocks


@pytest.mark.parametrize(
    ("window", "sink", "in_flight", "context", "blocks"),
    [
        (64, 4, 32, 1000, 6 + 1 + 1),  # ceil((63 + 32) / 16) = 6, one for a window that begins inside a block
        (65, 0, 32, 1000, 6 + 1),
        (66, 0, 32, 1000, 7 + 1),
        (64, 40, 32, 1000, 6 + 1 + 3),
        (1, 0, 1, 1000, 1 + 1),
        (5000, 4, 32, 1000, 63),  # all 1000 tokens: no block more than a global head
        (900, 64, 32, 1000, 63),
        (64, 4, 32, 16, 1),
    ],
)
def test_a_request_holds_window_in_flight_tokens_and_sinks_at_most(
    window: int, sink: int, in_flight: int, context: int, blocks: int
) -> None:
    spec = local(window, sink)
    assert spec.max_admission_blocks_per_request(in_flight, context) == blocks
    config = SimpleNamespace(
        max_in_flight_tokens=in_flight,
        model_config=SimpleNamespace(max_model_len=context),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
    )
    assert spec.page_size_bytes == 16 * 2 * 64 * 2
    assert spec.max_memory_usage_bytes(config) == blocks * spec.page_size_bytes


def test_merged_specs_keep_what_any_of_them_keeps() -> None:
    merged = SinkWindowSpec.merge([local(64, 40), local(128, 4), local(1, 0)])
    assert merged == local(128, 40)


def test_a_spec_merged_with_itself_is_itself() -> None:
    assert SinkWindowSpec.merge([local(64, 4)] * 3) == local(64, 4)


@pytest.mark.parametrize(
    "other",
    [
        local(64, 4, block_size=32),
        local(64, 4, head_size=128),
        local(64, 4, dtype=torch.float32),
        replace(local(64, 4), extra_retained_tokens=1),
        FullAttentionSpec(**PAGE),
        SlidingWindowSpec(**PAGE, sliding_window=64),
    ],
)
def test_specs_of_other_pages_or_kinds_do_not_merge(other: Any) -> None:
    # vLLM asks whether specs merge by catching exactly this.
    with pytest.raises(AssertionError):
        SinkWindowSpec.merge([local(64, 4), other])


def test_only_equal_windows_and_sinks_are_uniform() -> None:
    spec = local(64, 4)
    assert spec.is_uniform_with_collection({"a": spec, "b": local(64, 4, head_size=128)})
    assert not spec.is_uniform_with_collection({"a": spec, "b": local(64, 5)})
    assert not spec.is_uniform_with_collection({"a": spec, "b": local(65, 4)})
    assert not spec.is_uniform_with_collection({"a": spec, "b": SlidingWindowSpec(**PAGE, sliding_window=64)})


def test_vllm_does_not_take_specs_of_different_sinks_for_one_type() -> None:
    register_spec()
    assert UniformTypeKVCacheSpecs.from_specs({"a": local(64, 4), "b": local(64, 4)}) is not None
    assert UniformTypeKVCacheSpecs.from_specs({"a": local(64, 4), "b": local(64, 20)}) is None
    assert UniformTypeKVCacheSpecs.from_specs({"a": local(64, 4), "b": FullAttentionSpec(**PAGE)}) is None


def test_registering_twice_leaves_vllms_own_specs_and_ours() -> None:
    register_spec()
    register_spec()
    assert KVCacheSpecRegistry.get_manager_class(local(64, 4)) is SinkWindowManager
    stock = KVCacheSpecRegistry.get_manager_class(SlidingWindowSpec(**PAGE, sliding_window=64))
    assert stock is not None
    assert stock is not SinkWindowManager
    KVCacheSpecRegistry.check_kv_cache_spec_registry({"a": local(64, 4), "b": FullAttentionSpec(**PAGE)})
