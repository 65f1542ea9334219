"""What an engine of an evaluation needs, before there is one. Bytes, estimates from above."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vllm_redknot.heads.model_shape import ModelShape

REQUESTS: Final = 2
"""Longest requests the KV cache is sized for: one runs at a time, and groups of pages are padded."""
LOGIT_COPIES: Final = 4
"""Of a step's logits in fp32 that are alive at once: themselves, their softmax, sorting space."""
BASE_BYTES: Final = 2 * 2**30
"""A Python process with torch and vLLM."""
MEMINFO: Final = Path("/proc/meminfo")


def request_kv_bytes(shape: ModelShape, tokens: int, element_bytes: int, block_size: int) -> int:
    """KV of one request in stock vLLM, over all ranks."""
    padded = -(-tokens // block_size) * block_size
    return 2 * len(shape.attention_layers) * shape.num_kv_heads * shape.head_dim * element_bytes * padded


def logits_bytes(shape: ModelShape, batched_tokens: int) -> int:
    """Scoring a step's prompt tokens: every one has logits."""
    return LOGIT_COPIES * 4 * batched_tokens * shape.vocab_size


def available_bytes() -> int | None:
    """Memory of this machine that processes may take, None where the system does not say."""
    if not MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
