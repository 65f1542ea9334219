"""A small random model, documents in its vocabulary, and an engine's limits: what most reuse tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.engine.head_files import random_heads, write
from tests.engine.small_models import LAYERS, SHAPES, save

LIMITS: dict[str, Any] = {"skip_tokenizer_init": True, "max_model_len": 1024, "kv_cache_memory_bytes": 2**26}
LOCAL_SEED = 5


class World:
    """A checkpoint, a head file with local heads, and random token ids."""

    def __init__(self, folder: Path) -> None:
        shape = SHAPES["gqa_4"]
        self.folder = save(shape, folder / "model")
        self.heads = write(folder, random_heads(LAYERS, shape.kv_heads, LOCAL_SEED))
        self._generator = torch.Generator().manual_seed(3)

    def tokens(self, length: int) -> list[int]:
        """Random token ids."""
        drawn: list[int] = torch.randint(0, 512, (length,), generator=self._generator).tolist()
        return drawn
