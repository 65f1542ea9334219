"""Token-id prompts cut from natural text, and the small model of the reuse tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.engine.reuse_world import World
from vllm_redknot.evals.texts import essays

Cut = Callable[[int, int], list[int]]


@pytest.fixture(scope="session")
def cut(model_path: Path) -> Cut:
    """``cut(start, length)``: `length` tokens of the essays from token `start` on."""
    ids = AutoTokenizer.from_pretrained(model_path)(essays()[:200_000])["input_ids"]

    def prompt(start: int, length: int) -> list[int]:
        assert start + length <= len(ids)
        return list(ids[start : start + length])

    return prompt


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small random model with local heads, of the module's own: its token ids are drawn in the order of asking."""
    return World(tmp_path_factory.mktemp("world"))
