"""KV bytes by closed form, against a form in tokens written here, and against vLLM's own allocation arithmetic."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.core import kv_cache_utils

from vllm_redknot.attention.segments import head_spec
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.profile import HeadClass, HeadKind, HeadProfile, HeadVisibility, all_global
from vllm_redknot.kvcache.capacity import Capacity, PageFormat, Workload, blocks_kept, capacity

KIB, GIB = 2**10, 2**30
PAGE = PageFormat(head_size=128, element_bytes=2, block_size=16)
BYTES_PER_TOKEN = 2 * 128 * 2
"""K and V of one head in bf16."""


def profile_of(layers: int, heads: int, global_heads: int, window: int, sink: int = 4) -> HeadProfile:
    """The last heads of the last layers are global, the others local."""
    classes = [HeadClass.LOCAL] * (layers * heads - global_heads) + [HeadClass.GLOBAL] * global_heads
    rows = [tuple(classes[row * heads : (row + 1) * heads]) for row in range(layers)]
    return HeadProfile(
        classes=tuple(rows),
        window=tuple(tuple(window if cls is HeadClass.LOCAL else None for cls in row) for row in rows),
        sink=((sink,) * heads,) * layers,
        layer_ids=tuple(range(layers)),
    )


PUBLISHED = {
    "Llama-3.3-70B": ("llama-70B_optimal_g15_lf_ret.json", profile_of(80, 8, 80, 8192)),
    "Qwen3-32B": ("qwen3-32B_optimal_g15_lf_ret.json", profile_of(64, 8, 77, 4096)),
}
"""Published head file, and a profile with the same counts for where the file is not at hand."""


def bytes_in_tokens(profile: HeadProfile, context: int, in_flight: int) -> int:
    """The closed form without blocks: a local head keeps window, in-flight and sink tokens, a global head all."""
    tokens = 0
    for layer in profile.layer_ids:
        for head in range(profile.num_kv_heads):
            window, sink = profile.visibility(layer, head)
            tokens += context if window is None else min(context, window - 1 + in_flight + sink)
    return tokens * BYTES_PER_TOKEN


def vllm_bytes(config: Any, profile: HeadProfile) -> float:
    """Bytes of a longest request by vLLM's planning: its KV memory over its maximum concurrency."""
    parent = SimpleNamespace(head_size=128, head_size_v=128, kv_cache_torch_dtype=torch.bfloat16)
    specs = {
        f"layers.{layer}.kv_head_{head}": head_spec(
            config, parent=parent, visibility=profile.visibility(layer, head)
        )
        for layer in profile.layer_ids
        for head in range(profile.num_kv_heads)
    }
    (cache,) = kv_cache_utils.get_kv_cache_configs(config, [specs], [1024 * GIB])
    concurrency = kv_cache_utils.get_max_concurrency_for_kv_cache_config(config, cache)
    return 1024 * GIB / concurrency


@pytest.mark.parametrize(
    ("window", "sink", "context", "in_flight", "blocks"),
    [
        (None, 0, 1000, 64, 63),
        (None, 0, 1024, 64, 64),
        (64, 4, 1000, 64, 8 + 1 + 1),
        (64, 17, 1000, 64, 8 + 1 + 2),
        (1, 0, 1000, 1, 2),
        (1000, 4, 1000, 64, 63),
        (10**9, 10**9, 1000, 64, 63),
        (64, 4, 10, 64, 1),
    ],
)
def test_blocks_of_one_head_follow_the_closed_form(
    window: int | None, sink: int, context: int, in_flight: int, blocks: int
) -> None:
    assert blocks_kept(HeadVisibility(window, sink), PAGE, Workload(context, in_flight)) == blocks


def test_a_profile_costs_the_sum_of_its_heads() -> None:
    found = capacity(profile_of(2, 3, 2, window=64), PAGE, Workload(1000, 64))
    assert PAGE.page_bytes == 8 * KIB
    assert found == Capacity((2 * 63 + 4 * 10) * 8 * KIB, 6 * 63 * 8 * KIB)
    assert found.kept_share == pytest.approx(166 / 378)
    assert found.concurrency(GIB) == pytest.approx(GIB / (166 * 8 * KIB))


def test_a_dense_prefix_counts_as_global() -> None:
    profile = profile_of(2, 3, 0, window=64).with_overrides(dense_prefix_layers=1)
    assert capacity(profile, PAGE, Workload(1000, 64)).request_bytes == (3 * 63 + 3 * 10) * 8 * KIB


def test_all_heads_global_costs_as_much_as_dense() -> None:
    found = capacity(all_global((0, 1, 2), 4), PAGE, Workload(1000, 64))
    assert found.kept_share == 1.0
    assert found.dense_request_bytes == 12 * 63 * 8 * KIB


@pytest.mark.parametrize("field", ["head_size", "element_bytes", "block_size"])
def test_a_page_of_nothing_is_refused(field: str) -> None:
    values = {"head_size": 128, "element_bytes": 2, "block_size": 16, field: 0}
    with pytest.raises(ValueError, match=f"{field} is 0: give at least 1"):
        PageFormat(**values)


@pytest.mark.parametrize("field", ["context_tokens", "in_flight_tokens"])
def test_a_workload_of_nothing_is_refused(field: str) -> None:
    values = {"context_tokens": 1, "in_flight_tokens": 1, field: 0}
    with pytest.raises(ValueError, match=f"{field} is 0: give at least 1"):
        Workload(**values)


def test_logical_mla_heads_are_refused() -> None:
    profile = HeadProfile(
        classes=((HeadClass.GLOBAL,),), window=((None,),), sink=((0,),), layer_ids=(0,), kind=HeadKind.MLA
    )
    with pytest.raises(ValueError, match="1 attention layers x 1 MLA logical heads"):
        capacity(profile, PAGE, Workload(1000, 64))


def test_the_arithmetic_needs_no_vllm() -> None:
    program = (
        "import sys, vllm_redknot.kvcache.capacity; sys.exit('vllm' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("max_num_batched_tokens", [2048, 8192])
@pytest.mark.parametrize("context", [32 * KIB, 128 * KIB])
@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("source", ["published file", "same counts"])
def test_vllm_plans_within_5_percent_of_the_closed_form(
    engine_config: Any,
    request: pytest.FixtureRequest,
    source: str,
    model: str,
    context: int,
    max_num_batched_tokens: int,
) -> None:
    file, profile = PUBLISHED[model]
    if source == "published file":
        folder: Path = request.getfixturevalue("shared_data")
        profile = load_profile(folder / "head_class" / file)
    config = engine_config(
        max_model_len=context, max_num_batched_tokens=max_num_batched_tokens, block_size=16
    )
    in_flight = config.max_in_flight_tokens
    assert in_flight >= max_num_batched_tokens
    tokens = bytes_in_tokens(profile, context, in_flight)
    found = capacity(profile, PAGE, Workload(context, in_flight))
    planned = vllm_bytes(config, profile)
    assert found.request_bytes == pytest.approx(tokens, rel=0.01)
    assert planned == pytest.approx(tokens, rel=0.05)
    assert planned >= found.request_bytes * 0.999
    assert vllm_bytes(config, all_global(profile.layer_ids, profile.num_kv_heads)) == pytest.approx(
        found.dense_request_bytes, rel=0.001
    )
