import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vllm_redknot.cli.main import app

Run = Callable[..., Result]
WriteModel = Callable[..., Path]

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 16384,
    "rope_theta": 10000.0,
    "dtype": "bfloat16",
}


@pytest.fixture
def redknot(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line as the console script does. Whatever happens, no traceback, and errors are one line."""
    for name in [name for name in os.environ if name.startswith("REDKNOT_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str | Path, width: int = 80) -> Result:
        result = CliRunner().invoke(
            app, [str(argument) for argument in arguments], env={"COLUMNS": str(width)}
        )
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Traceback" not in result.output
        assert result.exit_code in (0, 1, 2)
        return result

    return run


@pytest.fixture
def fails(redknot: Run) -> Callable[..., str]:
    """Runs a command line that must fail with one line on stderr and nothing on stdout; returns the line."""

    def run(*arguments: str | Path, status: int = 1) -> str:
        result = redknot(*arguments)
        assert result.exit_code == status, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("redknot: ")
        return str(line)

    return run


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Writes a model's folder that holds nothing but a config.json: a small Llama with some keys changed."""

    def write(name: str = "model", **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        config = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.fixture
def heads_file(tmp_path: Path) -> Path:
    """A native file that fits `write_model`'s model: two global heads, two windows."""
    rows = [
        {"layer": 0, "classes": ["local", "local"]},
        {"layer": 1, "classes": ["local", "global"]},
        {"layer": 2, "classes": ["retrieval", "local"], "window": [None, 1024]},
        {"layer": 3, "classes": ["local", "local"], "sink": [16, None]},
    ]
    document = {
        "format": "redknot-head-profile",
        "version": 1,
        "model": {"name": "small", "num_layers": 4, "num_kv_heads": 2},
        "provenance": {"tool": "a test", "notes": "by hand"},
        "defaults": {"window": 256, "sink": 4},
        "layers": rows,
        "sections": {"evidence": {"needle": 0.5}},
    }
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(document))
    return path
