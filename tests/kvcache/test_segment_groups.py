"""From segment specs to vLLM's KV-cache groups, with real engine configurations."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.core import kv_cache_utils
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, SlidingWindowSpec

from vllm_redknot.kvcache.segment_groups import group_segments
from vllm_redknot.kvcache.spec import SinkWindowSpec

PAGE: dict[str, Any] = {"block_size": 16, "num_kv_heads": 1, "head_size": 128, "dtype": torch.bfloat16}
GLOBAL = FullAttentionSpec(**PAGE)


def local(window: int = 64, sink: int = 4, **changes: Any) -> SinkWindowSpec:
    return SinkWindowSpec(**{**PAGE, **changes}, sliding_window=window, num_sink_tokens=sink)


def named(*specs: KVCacheSpec) -> dict[str, KVCacheSpec]:
    return {f"layers.{index}": spec for index, spec in enumerate(specs)}


@pytest.fixture
def config(engine_config: Any) -> Any:
    """Context 1024, block 16, 256 tokens in flight."""
    return engine_config()


def concurrency(config: Any, specs: dict[str, KVCacheSpec], kv_cache_bytes: int = 2**30) -> float:
    (cache,) = kv_cache_utils.get_kv_cache_configs(config, [specs], [kv_cache_bytes])
    return float(kv_cache_utils.get_max_concurrency_for_kv_cache_config(config, cache))


def test_global_and_local_heads_get_groups_of_their_own(config: Any) -> None:
    groups = group_segments(config, named(GLOBAL, GLOBAL, *[local()] * 6))
    assert groups is not None
    assert [group.kv_cache_spec for group in groups] == [GLOBAL, local(), local(), local()]
    assert sorted(name for group in groups for name in group.layer_names) == sorted(named(*[GLOBAL] * 8))
    assert {"layers.0", "layers.1"} == set(groups[0].layer_names)


def test_a_group_keeps_what_any_of_its_heads_needs(engine_config: Any) -> None:
    config = engine_config(redknot={"max_groups": 1})
    groups = group_segments(config, named(local(64, 40), local(128, 4)))
    assert groups is not None
    assert [group.kv_cache_spec for group in groups] == [local(128, 40)]


def test_a_local_head_promoted_among_global_ones_is_stored_in_full(engine_config: Any) -> None:
    config = engine_config(redknot={"max_groups": 1})
    groups = group_segments(config, named(GLOBAL, local()))
    assert groups is not None
    assert [group.kv_cache_spec for group in groups] == [GLOBAL]


def test_a_window_as_long_as_the_context_is_stored_in_full(config: Any) -> None:
    groups = group_segments(config, named(local(5000), local(900, 200)))
    assert groups is not None
    assert [group.kv_cache_spec for group in groups] == [GLOBAL]


def test_an_all_local_model_has_no_full_group(config: Any) -> None:
    groups = group_segments(config, named(*[local()] * 4))
    assert groups is not None
    assert [group.kv_cache_spec for group in groups] == [local()]


def test_an_all_global_model_is_left_to_vllm(config: Any) -> None:
    assert group_segments(config, named(GLOBAL, GLOBAL)) is None


def test_other_backends_are_left_to_vllm(config: Any) -> None:
    config.attention_config.backend = None
    assert group_segments(config, named(GLOBAL, local())) is None


@pytest.mark.parametrize(
    "odd",
    [
        local(block_size=32),
        local(head_size=64),
        local(dtype=torch.float32),
        FullAttentionSpec(**{**PAGE, "num_kv_heads": 2}),
        SlidingWindowSpec(**PAGE, sliding_window=64),
    ],
)
def test_pages_that_do_not_fit_together_are_left_to_vllm_with_a_line(
    config: Any, odd: KVCacheSpec, caplog: pytest.LogCaptureFixture
) -> None:
    assert group_segments(config, named(GLOBAL, local(), odd)) is None
    assert "different page formats" in caplog.text


def test_local_heads_without_the_hybrid_manager_are_refused(config: Any) -> None:
    config.scheduler_config.disable_hybrid_kv_cache_manager = True
    with pytest.raises(ValueError, match="hybrid KV-cache manager, which is turned off"):
        group_segments(config, named(GLOBAL, local()))
    assert group_segments(config, named(GLOBAL, GLOBAL)) is None


def test_a_connector_that_would_leave_out_sinks_is_refused(config: Any) -> None:
    config.kv_transfer_config = SimpleNamespace(kv_connector="NixlConnector", kv_connector_module_path=None)
    with pytest.raises(ValueError, match="KV connector 'NixlConnector' does not keep the sink tokens"):
        group_segments(config, named(GLOBAL, local()))
    assert group_segments(config, named(GLOBAL, GLOBAL)) is None


def test_our_own_connectors_are_let_through(config: Any) -> None:
    config.kv_transfer_config = SimpleNamespace(
        kv_connector="SegmentStore", kv_connector_module_path="vllm_redknot.reuse.connector"
    )
    assert group_segments(config, named(GLOBAL, local())) is not None


def test_the_plan_is_logged_in_one_line(config: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vllm.redknot"):
        group_segments(config, named(GLOBAL, local(), local()))
    lines = [record.message for record in caplog.records if record.name == "vllm.redknot"]
    assert len(lines) == 1
    # 64 global blocks and 2 x (ceil((63 + 256) / 16) + 1 + 1) local ones, of 8 KiB each.
    assert "3 head segments in 3 KV-cache groups of 1 (0 padding slots, 0 segments stored longer" in lines[0]
    assert (
        f"at most {(64 + 2 * 22) * 8 / 1024:.1f} MiB of KV instead of {3 * 64 * 8 / 1024:.1f} MiB" in lines[0]
    )


def test_the_bound_on_groups_is_the_settings(engine_config: Any) -> None:
    windows = [16 * (index + 1) for index in range(30)]
    for bound in (2, 5, 16):
        groups = group_segments(
            engine_config(redknot={"max_groups": bound}), named(*[local(window) for window in windows])
        )
        assert groups is not None
        assert len(groups) <= bound


@pytest.mark.parametrize("seed", range(8))
def test_vllm_reserves_exactly_what_was_planned(config: Any, seed: int) -> None:
    import random

    rng = random.Random(seed)
    windows, sinks = [16, 64, 300, 1000], [0, 4, 200]
    specs = named(
        *(GLOBAL if rng.random() < 0.2 else local(rng.choice(windows), rng.choice(sinks)) for _ in range(24)),
        local(),
    )
    groups = group_segments(config, specs)
    assert groups is not None
    slots = max(len(group.layer_names) for group in groups)
    pages = slots * sum(
        group.kv_cache_spec.max_memory_usage_bytes(config) // group.kv_cache_spec.page_size_bytes
        for group in groups
    )
    budget = 2**30
    blocks = budget // (slots * GLOBAL.page_size_bytes)
    assert concurrency(config, specs, budget) == pytest.approx(blocks * slots / pages)


def test_pipeline_stages_share_the_groups(engine_config: Any) -> None:
    config = engine_config(num_layers=8)
    stages = [
        {
            f"layers.{layer}.{head}": (GLOBAL if head == 0 else local())
            for layer in layers
            for head in range(4)
        }
        for layers in (range(4), range(4, 8))
    ]
    first, second = kv_cache_utils.get_kv_cache_configs(config, stages, [2**28, 2**28])
    assert first.num_blocks == second.num_blocks
    for cache in (first, second):
        # 4 global and 12 local heads a stage: groups of 4 without padding, as one stage alone would have.
        assert [len(group.layer_names) for group in cache.kv_cache_groups] == [4, 4, 4, 4]


def test_the_config_stand_ins_of_the_simulator_have_all_that_is_read() -> None:
    config = SimpleNamespace(
        attention_config=SimpleNamespace(backend="REDKNOT"),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
        model_config=SimpleNamespace(max_model_len=1024),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        max_in_flight_tokens=256,
        additional_config=None,
    )
    assert group_segments(config, named(GLOBAL, local())) is not None
