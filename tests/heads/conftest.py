import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.heads.model_shape import ModelShape
from vllm_redknot.heads.profile import HeadClass, HeadProfile

LETTERS = {cls.value[0].upper(): cls for cls in HeadClass}
MakeProfile = Callable[..., HeadProfile]
WriteFile = Callable[..., Path]


@pytest.fixture(scope="session")
def profile_of() -> MakeProfile:
    """A profile from rows of class letters: L(ocal), G(lobal), D(ense), R(etrieval)."""

    def make(rows: Sequence[str], window: int = 64, sink: int = 4, **changes: Any) -> HeadProfile:
        classes = tuple(tuple(LETTERS[letter] for letter in row) for row in rows)
        fields: dict[str, Any] = {
            "classes": classes,
            "window": tuple(
                tuple(window if cls is HeadClass.LOCAL else None for cls in row) for row in classes
            ),
            "sink": tuple((sink,) * len(row) for row in classes),
            "layer_ids": tuple(range(len(rows))),
        }
        return HeadProfile(**{**fields, **changes})

    return make


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    """Writes a head-class file: bytes and text as they are, anything else as JSON."""

    def write(content: object, name: str = "heads.json") -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.fixture
def v1() -> dict[str, Any]:
    """A small sound V1 document, 2 layers x 2 KV heads."""
    return {
        "num_layers": 2,
        "num_kv_heads": 2,
        "retrieval_top_p": 0.9,
        "dense_prefix_layers": 0,
        "kv_head_classification": [["local_full", "global"], ["retrieval", "local"]],
        "kv_head_max_distance": [[4096, -1], [-1, 1024]],
        "kv_head_sink_size": [[4, 4], [4, 16]],
    }


@pytest.fixture
def native_document() -> dict[str, Any]:
    """A small sound native document, 2 layers x 2 KV heads."""
    return {
        "format": "redknot-head-profile",
        "version": 1,
        "model": {"name": "tiny", "model_type": "llama", "num_layers": 2, "num_kv_heads": 2},
        "provenance": {"tool": "a test", "parameters": {"seed": 3}},
        "defaults": {"window": 256, "sink": 4},
        "layers": [
            {"layer": 0, "classes": ["local", "global"]},
            {"layer": 1, "classes": ["retrieval", "local"], "window": [None, 32], "sink": [0, None]},
        ],
    }


@pytest.fixture(scope="session")
def smollm2() -> ModelShape:
    return ModelShape(
        num_layers=30,
        num_kv_heads=3,
        num_attention_heads=9,
        head_dim=64,
        hidden_size=576,
        vocab_size=49152,
        model_type="llama",
        intermediate_size=1536,
        rope_theta=100000.0,
    )
