"""KV memory: what real servers report for SmolLM2, and vLLM's own arithmetic for large models.

`python -m benchmarks.memory` writes benchmarks/results/memory.json. The large models need no weights: a configuration
of their shape goes through vLLM's planning. Published head files are read from `--head-files`; without them that part
is left out and the result says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.server import serving
from tools.smollm2_folder import default_folder
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.kvcache.capacity import PageFormat, Workload, capacity

ROOT = Path(__file__).parent.parent
LARGE_MODELS = {
    "Llama-3.3-70B": ("llama-70B_optimal_g15_lf_ret.json", 80, 64, 8),
    "Llama-3.3-70B, 10% global": ("llama-70B_sweetspot_g10_w4096.json", 80, 64, 8),
    "Qwen3-32B": ("qwen3-32B_optimal_g15_lf_ret.json", 64, 64, 8),
}
"""Head file, layers, query heads, KV heads; all have heads of 128 elements."""
CONTEXTS = (32 * 1024, 128 * 1024)
BATCHED_TOKENS, BLOCK = 8192, 16


def served(model: Path) -> dict[str, Any]:
    """vLLM's "maximum concurrency" for requests of 8K tokens in 1 GiB, by the log of real servers."""
    figures: dict[str, Any] = {}
    for name, backend in (("stock", "CPU_ATTN"), ("redknot", "REDKNOT")):
        flags = [
            *("--attention-backend", backend, "--enforce-eager", "--max-model-len", "8192"),
            *("--max-num-batched-tokens", "512", "--block-size", "32"),
            *("--kv-cache-memory-bytes", str(2**30)),
        ]
        with tempfile.TemporaryDirectory() as folder, serving(model, flags, Path(folder) / "log") as server:
            found = server.capacity()
        figures[name] = {
            "max_concurrency": found.max_concurrency,
            "kv_bytes_per_request": round(2**30 / found.max_concurrency),
        }
    figures["times_stock"] = figures["redknot"]["max_concurrency"] / figures["stock"]["max_concurrency"]
    return figures


def engine_config(layers: int, query_heads: int, kv_heads: int, context: int, folder: Path) -> Any:
    """A `VllmConfig` of a model that is only a config.json."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_redknot.plugin import register

    register()
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128 * query_heads,
        "intermediate_size": 256,
        "num_hidden_layers": layers,
        "num_attention_heads": query_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": 256,
        "max_position_embeddings": context,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(shape))
    config = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        attention_backend="REDKNOT",
        additional_config={"redknot": {"heads": "all-global"}},
        max_model_len=context,
        max_num_batched_tokens=BATCHED_TOKENS,
        block_size=BLOCK,
    ).create_engine_config()
    # What the engine core resolves before it plans the cache.
    config.cache_config.kv_cache_layout = "LBNHC"
    return config


def planned_bytes(config: Any, profile: HeadProfile) -> float:
    """KV bytes of a longest request by vLLM's planning: a pool over its "maximum concurrency"."""
    import torch
    from vllm.v1.core import kv_cache_utils

    from vllm_redknot.attention.segments import head_spec

    pool = 2**42
    parent = SimpleNamespace(head_size=128, head_size_v=128, kv_cache_torch_dtype=torch.bfloat16)
    specs = {
        f"layers.{layer}.kv_head_{head}": head_spec(
            config, parent=parent, visibility=profile.visibility(layer, head)
        )
        for layer in profile.layer_ids
        for head in range(profile.num_kv_heads)
    }
    (cache,) = kv_cache_utils.get_kv_cache_configs(config, [specs], [pool])
    return pool / float(kv_cache_utils.get_max_concurrency_for_kv_cache_config(config, cache))


def large_models(head_files: Path) -> list[dict[str, Any]]:
    """vLLM's arithmetic against the closed form, per model and context."""
    rows = []
    for name, (file, layers, query_heads, kv_heads) in LARGE_MODELS.items():
        profile = load_profile(head_files / file)
        for context in CONTEXTS:
            with tempfile.TemporaryDirectory() as folder:
                config = engine_config(layers, query_heads, kv_heads, context, Path(folder))
                planned = planned_bytes(config, profile)
            closed = capacity(
                profile, PageFormat(128, 2, BLOCK), Workload(context, config.max_in_flight_tokens)
            )
            rows.append(
                {
                    "model": name,
                    "head_file": file,
                    "context": context,
                    "in_flight_tokens": config.max_in_flight_tokens,
                    "dense_bytes": closed.dense_request_bytes,
                    "closed_form_bytes": closed.request_bytes,
                    "vllm_bytes": round(planned),
                    "vllm_over_closed_form": planned / closed.request_bytes,
                    "times_dense_concurrency": closed.dense_request_bytes / planned,
                }
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-folder", type=Path, default=default_folder(), help="folder of SmolLM2")
    parser.add_argument(
        "--head-files",
        type=Path,
        default=ROOT.parent / "shared" / "data" / "head_class",
        help="folder of the published head files",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "memory.json")
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "smollm2_8k_in_1_gib": served(arguments.model_folder),
    }
    if arguments.head_files.is_dir():
        document["large_models"] = large_models(arguments.head_files)
    else:
        document["large_models"] = (
            f"left out: no folder of published head files at {arguments.head_files.name}"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
