"""What stored KV depends on beside its tokens: KV is only ever served where all of this is equal."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from vllm_redknot.reuse.faults import ReuseError

FORMAT_VERSION: Final = 1
"""Of the files, and of what their contents mean."""
DIGEST_LETTERS: Final = 32
SAMPLE_BYTES: Final = 4096
SAMPLES_PER_TENSOR: Final = 16
MAX_HEADER_BYTES: Final = 100 * 2**20
"""The safetensors format's own limit."""
UNRELATED_KEYS: Final = frozenset(
    {"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}
)
"""Of a model's config: names and versions, and what has a field of its own."""


@dataclass(frozen=True)
class Fingerprint:
    """Everything but the tokens that decides the KV of one rank.

    Attributes:
        weights: `weights_digest` of the checkpoint.
        config: `config_digest` of the model's config as it runs, overrides included.
        dtype: that the model computes in, such as "bfloat16".
        rope: `canonical` of the rotary parameters.
        heads: `HeadProfile.fingerprint()` of all ranks' profile.
        rows: `RowSchedule.digest()` of the row-skipping schedule; "" where every row is computed.
        tp_rank, tp_size: which heads these are.
        model: for people; never compared.
    """

    weights: str
    config: str
    dtype: str
    rope: str
    heads: str
    rows: str = ""
    tp_rank: int = 0
    tp_size: int = 1
    version: int = FORMAT_VERSION
    model: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.tp_rank < self.tp_size:
            raise ReuseError(f"tp_rank is {self.tp_rank}: give 0 to {self.tp_size - 1} (tp_size - 1)")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `to_json`. Raises ReuseError or TypeError for anything else."""
        found = cls(**document)
        for key, value in asdict(found).items():
            if type(value) is not (int if key in ("tp_rank", "tp_size", "version") else str):
                raise TypeError(f"{key} is {value!r:.60}")
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def digest(self) -> str:
        """32 hex digits over all that is compared."""
        compared = {key: value for key, value in asdict(self).items() if key != "model"}
        return short_digest(canonical(compared).encode())


def canonical(document: Mapping[str, Any]) -> str:
    """JSON that is equal for equal documents. Raises ReuseError for what JSON cannot hold."""
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ReuseError(f"no fingerprint of {document!r:.200}: {error}; give JSON values") from error


def short_digest(content: bytes) -> str:
    """The first 32 hex digits of SHA-256: 128 bits."""
    return hashlib.sha256(content).hexdigest()[:DIGEST_LETTERS]


def config_digest(config: Mapping[str, Any]) -> str:
    """32 hex digits over a model's config, names and versions left out. Raises ReuseError."""
    return short_digest(
        canonical({key: value for key, value in config.items() if key not in UNRELATED_KEYS}).encode()
    )


def weights_digest(folder: Path) -> str:
    """32 hex digits over the safetensors checkpoint in `folder`, without reading all of it.

    Covers each file's name, size and whole header (names, types and shapes of all tensors), and of every tensor 16
    evenly spaced samples of 4 KiB, first and last bytes included; a tensor of up to 64 KiB is read whole. Fine-tuning,
    merged adapters and quantisation change every sampled matrix. An edit confined to a few rows of one large matrix
    can go unseen: give such a checkpoint a store of its own.

    Raises:
        ReuseError: No safetensors files, or files that are not safetensors.
        OSError: A file cannot be read.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ReuseError(f"{folder} has no *.safetensors: KV reuse needs a checkpoint to tell models apart")
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            header = _header(file, path, size)
            digest.update(canonical({"name": path.name, "size": size, "header": len(header)}).encode())
            digest.update(header)
            start = 8 + len(header)
            for begin, end in _tensors(header, path):
                for offset, length in _samples(begin, end):
                    file.seek(start + offset)
                    digest.update(file.read(length))
    return digest.hexdigest()[:DIGEST_LETTERS]


def _header(file: BinaryIO, path: Path, size: int) -> bytes:
    file.seek(0)
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise ReuseError(f"{path} is not a safetensors file: download the checkpoint again")
    return file.read(length)


def _tensors(header: bytes, path: Path) -> list[tuple[int, int]]:
    """Byte ranges of the tensors in a file's data, in order."""
    try:
        document = json.loads(header)
        ranges = [
            (int(entry["data_offsets"][0]), int(entry["data_offsets"][1]))
            for name, entry in document.items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ReuseError(f"{path} is not a safetensors file: download the checkpoint again") from error
    if any(not 0 <= begin <= end for begin, end in ranges):
        raise ReuseError(f"{path} is not a safetensors file: download the checkpoint again")
    return sorted(ranges)


def _samples(begin: int, end: int) -> list[tuple[int, int]]:
    """(offset, length) of what is read of a tensor's bytes [begin, end)."""
    size = end - begin
    if size <= SAMPLE_BYTES * SAMPLES_PER_TENSOR:
        return [(begin, size)]
    last = size - SAMPLE_BYTES
    return [(begin + last * i // (SAMPLES_PER_TENSOR - 1), SAMPLE_BYTES) for i in range(SAMPLES_PER_TENSOR)]
