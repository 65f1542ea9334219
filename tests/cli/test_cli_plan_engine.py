"""A plan made from the config alone agrees with what vLLM's own planning allocates, grouping included."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core import kv_cache_utils

from benchmarks.memory import BATCHED_TOKENS, BLOCK, LARGE_MODELS, engine_config, planned_bytes
from tests.cli.conftest import Run
from vllm_redknot.attention.segments import head_spec
from vllm_redknot.heads import native
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.profile import HeadVisibility
from vllm_redknot.heads.resolve import bundled_paths
from vllm_redknot.plugin import register
from vllm_redknot.support import resolve_model_heads

GIB = 2**30


@pytest.mark.parametrize("context", [32 * 1024, 128 * 1024])
@pytest.mark.parametrize("model", LARGE_MODELS)
def test_published_files_cost_what_vllm_plans(
    redknot: Run, shared_data: Path, tmp_path: Path, model: str, context: int
) -> None:
    file, layers, query_heads, kv_heads = LARGE_MODELS[model]
    heads = shared_data / "head_class" / file
    config = engine_config(layers, query_heads, kv_heads, context, tmp_path)
    vllm_bytes = planned_bytes(config, load_profile(heads))
    scheduling = (
        "--async-scheduling" if config.max_in_flight_tokens > BATCHED_TOKENS else "--no-async-scheduling"
    )
    result = redknot(
        *("plan", tmp_path, "--heads", heads, "--contexts", str(context), "--json", scheduling),
        *("--batched-tokens", str(BATCHED_TOKENS), "--block-size", str(BLOCK), "--kv-bytes", "1024GiB"),
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    (row,) = document["contexts"]
    assert document["in_flight_tokens"] == config.max_in_flight_tokens
    assert row["redknot"]["request_bytes"] == pytest.approx(vllm_bytes, rel=0.02)
    assert row["redknot"]["sessions"] == pytest.approx(1024 * GIB / vllm_bytes, rel=0.02)
    # Far from a profile that saves nothing, so that agreement means something.
    assert row["redknot"]["request_bytes"] < 0.7 * row["stock"]["request_bytes"]


def test_the_test_model_gets_24_requests_of_8k_into_a_gib(
    redknot: Run, model_path: Path, repo_root: Path
) -> None:
    result = redknot(
        *("plan", model_path, "--contexts", "8K", "--kv-bytes", "1GiB", "--block-size", "32", "--json"),
        *("--heads", repo_root / "benchmarks" / "heads" / "smollm2-needle13.json"),
        *("--batched-tokens", "512", "--no-async-scheduling"),
    )
    (row,) = json.loads(result.stdout)["contexts"]
    # What the logs of real servers said, stock and REDKNOT.
    assert row["stock"]["sessions"] == pytest.approx(5.69, abs=0.005)
    assert row["redknot"]["sessions"] == pytest.approx(24.47, abs=0.005)
    assert row["redknot"]["groups"] == 7


def mixed_heads(path: Path) -> Path:
    """The bundled profile with long windows and no sinks in even layers, short windows and long sinks in odd ones."""
    (bundled,) = bundled_paths()
    profile = load_profile(bundled)
    window = tuple(
        tuple(None if old is None else (300 if row % 2 else 2000) for old in windows)
        for row, windows in enumerate(profile.window)
    )
    sink = tuple((1500 if row % 2 else 0,) * 3 for row in range(profile.num_layers))
    native.write(replace(profile, window=window, sink=sink), path)
    return path


@pytest.mark.parametrize("max_groups", [2, 4, 16])
@pytest.mark.parametrize("overrides", [{}, {"window": 1024, "sink": 70}, {"dense_prefix_layers": 3}, "mixed"])
def test_padding_and_promotion_are_those_of_the_engine(
    redknot: Run, model_path: Path, tmp_path: Path, max_groups: int, overrides: dict[str, int] | str
) -> None:
    register()
    settings: dict[str, int | str] = {"max_groups": max_groups}
    if isinstance(overrides, str):
        settings["heads"] = str(mixed_heads(tmp_path / "mixed.json"))
    else:
        settings |= overrides
    config = EngineArgs(
        model=str(model_path),
        attention_backend="REDKNOT",
        additional_config={"redknot": settings},
        max_model_len=8192,
        max_num_batched_tokens=512,
        block_size=32,
    ).create_engine_config()
    config.cache_config.kv_cache_layout = "LBNHC"
    profile = resolve_model_heads(config).profile
    parent = SimpleNamespace(head_size=64, head_size_v=64, kv_cache_torch_dtype=torch.bfloat16)
    specs = {
        f"layers.{layer}.kv_head_{head}": head_spec(
            config, parent=parent, visibility=profile.visibility(layer, head)
        )
        for layer in profile.layer_ids
        for head in range(profile.num_kv_heads)
    }
    (cache,) = kv_cache_utils.get_kv_cache_configs(config, [specs], [4 * GIB])
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    result = redknot(
        *(
            "plan",
            model_path,
            "--contexts",
            "8K",
            "--kv-bytes",
            "4GiB",
            "--block-size",
            "32",
            "--json",
            *flags,
        ),
        *("--batched-tokens", "512", "--no-async-scheduling"),
    )
    (row,) = json.loads(result.stdout)["contexts"]
    sessions = kv_cache_utils.get_max_concurrency_for_kv_cache_config(config, cache)
    assert row["redknot"]["sessions"] == pytest.approx(sessions, rel=1e-9)
    assert row["redknot"]["groups"] == len(cache.kv_cache_groups)
    everything = {
        name: head_spec(config, parent=parent, visibility=HeadVisibility(None, 0)) for name in specs
    }
    for served, planned in ((specs, row["redknot"]), (everything, row["stock"])):
        least = planned["least_kv_bytes"]
        kv_cache_utils.get_kv_cache_configs(config, [dict(served)], [least])
        with pytest.raises(ValueError, match="To serve at least one request"):
            kv_cache_utils.get_kv_cache_configs(config, [dict(served)], [least - 1])
