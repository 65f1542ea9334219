"""The engine of `redknot store add`: arguments of `vllm.LLM` that compute documents as a server would."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.model_file import ModelFile
from vllm_redknot.cli.plan_inputs import ELEMENT_BYTES
from vllm_redknot.cli.serve_flags import redknot_section
from vllm_redknot.config import ENV_PREFIX, SECTION, RedknotConfig
from vllm_redknot.evals.memory import REQUESTS, request_kv_bytes
from vllm_redknot.settings import BACKEND_NAME

GIB: Final = 2**30
BLOCK_SIZE: Final = 32
CHUNK: Final = 2048
"""Tokens of a step."""
SHORTEST_LENGTH: Final = 512
"""Of the engine's --max-model-len, however short the documents are."""


def adding_arguments(
    model: ModelFile, config: RedknotConfig, longest: int, dtype: str, store: Path, max_bytes: int
) -> dict[str, Any]:
    """Arguments for documents of at most `longest` tokens.

    The KV of a document depends on weights, dtype, head classes and rows, not on what is chosen here: pages, chunks,
    budgets.
    No prefix is cached: a document is stored only where all of it is computed.

    Args:
        model: the server's.
        config: the settings of head classes and rows, and `min_reuse`.
        longest: tokens of the longest document.
        dtype: vLLM's --dtype.
        store: the segments' directory, absolute.
        max_bytes: its budget.

    Raises:
        CliError: A REDKNOT_* variable, which the engine would obey, says something else.
    """
    length = max(longest + 1, min(SHORTEST_LENGTH, model.max_context or SHORTEST_LENGTH))
    kv_bytes = REQUESTS * request_kv_bytes(model.shape, length, ELEMENT_BYTES[dtype], BLOCK_SIZE)
    section = {
        **redknot_section(config, ("min_reuse",)),
        # Nothing is taken from the store here, so no receipt is asked for.
        "reuse": "force",
        "store": str(store),
        "capture": "first",
        "store_disk_gib": max_bytes / GIB,
        # A segment has at most the KV of every token; a second one may still be on its way to the disk.
        "store_memory_gib": kv_bytes / GIB,
    }
    _check_variables(section)
    return {
        "model": str(model.path),
        "max_model_len": length,
        "max_num_batched_tokens": CHUNK,
        "max_num_seqs": 1,
        "kv_cache_memory_bytes": kv_bytes,
        "block_size": BLOCK_SIZE,
        "dtype": dtype,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "skip_tokenizer_init": True,
        "seed": 0,
        "disable_log_stats": True,
        "attention_backend": BACKEND_NAME,
        "additional_config": {SECTION: section},
    }


def _check_variables(section: dict[str, Any]) -> None:
    obeyed = RedknotConfig.from_additional_config({SECTION: section})
    for key, value in section.items():
        if getattr(obeyed, key) != value:
            raise CliError(
                f"{ENV_PREFIX}{key.upper()} is set to {getattr(obeyed, key)}, and `store add` needs {value}: unset it"
            )
