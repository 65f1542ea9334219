"""The engines of `redknot eval`, from its options: arguments of `vllm.LLM`, checked before anything is started."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vllm_redknot.cli.configurations import Configuration
from vllm_redknot.cli.diagnosis.installation import INSTALL
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.model_file import ModelFile
from vllm_redknot.cli.plan_inputs import ELEMENT_BYTES
from vllm_redknot.cli.units import show_bytes
from vllm_redknot.config import SECTION
from vllm_redknot.evals.memory import (
    BASE_BYTES,
    REQUESTS,
    available_bytes,
    logits_bytes,
    request_kv_bytes,
)
from vllm_redknot.evals.run import ENGINES, STOCK, Engine
from vllm_redknot.installed import installed_version
from vllm_redknot.settings import BACKEND_NAME

RESERVE: Final = 64
"""Tokens beyond the longest prompt, for answers."""
PLACES: Final = ("heads", "cache_dir")
"""Settings that name a place of this machine: answers depend on what lies there, and the fingerprint tells that."""


@dataclass(frozen=True)
class EngineOptions:
    """What the command line says of the engines; None where it does not. Tokens and bytes (of all ranks for KV)."""

    max_model_len: int | None
    kv_cache_memory_bytes: int | None
    max_num_batched_tokens: int
    block_size: int
    dtype: str
    tp_size: int
    enforce_eager: bool


def require_vllm(why: str = "eval compares two of its engines") -> None:
    """Raises CliError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise CliError(f"vLLM is not installed, and {why}: {INSTALL}")


def engine_arguments(
    model: ModelFile, options: EngineOptions, longest: int, max_logprobs: int, option: str = "--lengths"
) -> dict[str, Any]:
    """What all engines have in common. `option`: what of the command line says how long prompts are.

    Raises:
        CliError: The lengths do not fit the model or `--max-model-len`, the heads do not split over the ranks, or
            memory will not do.
    """
    heads, kv_heads, ranks = model.shape.num_attention_heads, model.shape.num_kv_heads, options.tp_size
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        raise CliError(
            f"--tensor-parallel-size is {ranks}: {heads} query heads and {kv_heads} KV heads do not split over it"
        )
    wanted = longest + RESERVE
    limit = options.max_model_len or model.max_context
    if limit is not None and wanted > limit:
        what = "--max-model-len is" if options.max_model_len else "the model's context is"
        raise CliError(
            f"prompts of {longest} tokens and {RESERVE} for answers do not fit, {what} {limit}: give {option} of"
            f" at most {limit - RESERVE}"
        )
    length = options.max_model_len or wanted
    element_bytes = ELEMENT_BYTES[options.dtype]
    per_rank = request_kv_bytes(model.shape, length, element_bytes, options.block_size)
    per_rank //= options.tp_size
    kv_bytes = options.kv_cache_memory_bytes or REQUESTS * per_rank
    # vLLM's pool holds one block back.
    least = per_rank + request_kv_bytes(model.shape, 1, element_bytes, options.block_size) // options.tp_size
    if kv_bytes < least:
        raise CliError(
            f"--kv-cache-memory-bytes is {kv_bytes} ({show_bytes(kv_bytes)}), and stock vLLM needs {least}"
            f" ({show_bytes(least)}) for one request of {length} tokens: give at least that, or shorter {option}"
        )
    _check_memory(model, options, kv_bytes, option)
    return {
        "model": str(model.path),
        "max_model_len": length,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_num_seqs": 4,
        "kv_cache_memory_bytes": kv_bytes,
        "block_size": options.block_size,
        "dtype": options.dtype,
        "tensor_parallel_size": options.tp_size,
        "enforce_eager": options.enforce_eager,
        "max_logprobs": max_logprobs,
        "seed": 0,
        "disable_log_stats": True,
    }


def engines(
    arguments: Mapping[str, Any], compared: Sequence[Configuration], identity: Mapping[str, Any]
) -> list[Engine]:
    """Stock vLLM with the platform's own backend, then REDKNOT in each configuration."""
    shared = {key: value for key, value in arguments.items() if key != "model"}
    stock = Engine(STOCK, arguments, {**identity, "heads": None, "arguments": shared})
    return [stock, *(_redknot(arguments, shared, one, identity) for one in compared)]


def _redknot(
    arguments: Mapping[str, Any],
    shared: Mapping[str, Any],
    configuration: Configuration,
    identity: Mapping[str, Any],
) -> Engine:
    section, rows = configuration.section, configuration.rows
    belongs = {
        **identity,
        "heads": configuration.profile.fingerprint(),
        "arguments": shared,
        "settings": {key: value for key, value in section.items() if key not in PLACES},
        # A head file may state it, and the fingerprint of its classes does not tell.
        "rows": None if rows is None else rows.digest(),
    }
    return Engine(
        ENGINES[configuration.name],
        {**arguments, "attention_backend": BACKEND_NAME, "additional_config": {SECTION: section}},
        belongs,
    )


def _check_memory(model: ModelFile, options: EngineOptions, kv_bytes: int, option: str) -> None:
    """On CPUs the engine shares the machine's memory; GPUs are vLLM's to look at."""
    free = available_bytes()
    if free is None or not _on_cpu():
        return
    weights = model.weight_bytes or 0
    logits = logits_bytes(model.shape, options.max_num_batched_tokens)
    needed = BASE_BYTES + weights + kv_bytes + logits
    if needed > free:
        raise CliError(
            f"the engine needs about {show_bytes(needed)} ({show_bytes(weights)} of weights, {show_bytes(kv_bytes)} of"
            f" KV, {show_bytes(logits)} of logits, {show_bytes(BASE_BYTES)} besides), and {show_bytes(free)} are free:"
            f" give shorter {option}, fewer --max-num-batched-tokens, or a larger machine"
        )


def _on_cpu() -> bool:
    version = installed_version("vllm")
    return version is None or "cpu" in version
