"""The bytes of a segment file: safetensors, checked so that no damaged or foreign file is ever served.

A file is a valid safetensors file of four tensors. First, in one stretch, what is needed to list it: `tokens` (int32),
`digests` (SHA-256 of every 4 MiB of `kv`) and `seal` (SHA-256 of every byte before it, header included). Then `kv`.
Reading the front alone proves the tokens; reading `kv` against the digests proves the rest.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from vllm_redknot.reuse.faults import Miss, SegmentError
from vllm_redknot.reuse.fingerprint import FORMAT_VERSION, canonical, short_digest
from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.scope import Scope

FORMAT: Final = "redknot-segment"
PIECE_BYTES: Final = 4 * 2**20
DIGEST_BYTES: Final = 32
MAX_HEADER_BYTES: Final = 16 * 2**20
FIRST_READ: Final = 16 * 2**10
"""Bytes that hold the whole front of most files."""
TYPE_NAMES: Final = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

Read = Callable[[int, int], bytes]
"""(offset, length) -> that many bytes of a file, fewer only where it ends."""


@dataclass(frozen=True)
class Front:
    """What a file says before its KV; proven by its seal."""

    scope: Scope
    tokens: bytes  # int32, little-endian
    digests: bytes  # 32 for each piece of kv
    kv_offset: int

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // 4

    @property
    def kv_bytes(self) -> int:
        return self.scope.format.kv_bytes(self.num_tokens)

    @property
    def content(self) -> str:
        return short_digest(self.tokens)

    def token_ids(self) -> list[int]:
        return list(struct.unpack(f"<{self.num_tokens}i", self.tokens))


def build_front(scope: Scope, tokens: bytes, kv: memoryview) -> bytes:
    """All bytes of a file before its KV. `tokens` is int32 little-endian, `kv` unsigned bytes."""
    header = _header(_metadata(scope), scope.format, len(tokens) // 4)
    digests = b"".join(
        hashlib.sha256(kv[at : at + PIECE_BYTES]).digest() for at in range(0, len(kv), PIECE_BYTES)
    )
    sealed = struct.pack("<Q", len(header)) + header + tokens + digests
    return sealed + hashlib.sha256(sealed).digest()


def read_front(read: Read, file_bytes: int) -> Front:
    """The front of a file of `file_bytes`. Raises SegmentError TRUNCATED, CORRUPT, or FOREIGN for another version."""
    start = read(0, FIRST_READ)
    if len(start) < 8:
        raise SegmentError(Miss.TRUNCATED, f"{file_bytes} bytes are no segment")
    header_bytes = struct.unpack("<Q", start[:8])[0]
    if header_bytes > MAX_HEADER_BYTES:
        raise SegmentError(Miss.CORRUPT, "the header's length is out of range")
    header = _take(read, start, 8, header_bytes, file_bytes)
    scope, num_tokens = _parse(header)
    kv_bytes = scope.format.kv_bytes(num_tokens)
    digests_bytes = DIGEST_BYTES * -(-kv_bytes // PIECE_BYTES)
    kv_offset = 8 + header_bytes + 4 * num_tokens + digests_bytes + DIGEST_BYTES
    rest = _take(read, start, 8 + header_bytes, kv_offset - 8 - header_bytes, file_bytes)
    sealed, seal = start[:8] + header + rest[:-DIGEST_BYTES], rest[-DIGEST_BYTES:]
    if hashlib.sha256(sealed).digest() != seal:
        raise SegmentError(Miss.CORRUPT, "the seal does not match the header, tokens and digests")
    if file_bytes < kv_offset + kv_bytes:
        raise SegmentError(Miss.TRUNCATED, f"{file_bytes} of {kv_offset + kv_bytes} bytes")
    if file_bytes > kv_offset + kv_bytes:
        raise SegmentError(Miss.CORRUPT, f"{file_bytes} bytes instead of {kv_offset + kv_bytes}")
    return Front(scope, rest[: 4 * num_tokens], rest[4 * num_tokens : -DIGEST_BYTES], kv_offset)


def check_piece(front: Front, index: int, piece: memoryview) -> None:
    """Raises SegmentError CORRUPT where a piece of the KV is not what was stored."""
    expected = front.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
    if hashlib.sha256(piece).digest() != expected:
        raise SegmentError(Miss.CORRUPT, f"checksum mismatch in the KV, bytes from {index * PIECE_BYTES}")


def _take(read: Read, start: bytes, offset: int, length: int, file_bytes: int) -> bytes:
    """A stretch of the file, from what has been read of it where that has it."""
    have = start[offset : offset + length]
    if len(have) < length:
        if offset + length > file_bytes:
            raise SegmentError(Miss.TRUNCATED, f"{file_bytes} of at least {offset + length} bytes")
        have = read(offset, length)
    if len(have) != length:
        raise SegmentError(Miss.TRUNCATED, f"ends before byte {offset + length}")
    return have


def _metadata(scope: Scope) -> dict[str, str]:
    """What safetensors allows there: strings."""
    return {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "fingerprint": canonical(scope.fingerprint.to_json()),
        "layout": canonical(scope.format.to_json()),
    }


def _header(metadata: dict[str, str], layout: SegmentFormat, num_tokens: int) -> bytes:
    rows = layout.num_rows(num_tokens)
    pieces = -(-layout.kv_bytes(num_tokens) // PIECE_BYTES)
    document: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, dtype, shape, size in (
        ("tokens", "I32", [num_tokens], 4 * num_tokens),
        ("digests", "U8", [pieces, DIGEST_BYTES], pieces * DIGEST_BYTES),
        ("seal", "U8", [DIGEST_BYTES], DIGEST_BYTES),
        ("kv", TYPE_NAMES[layout.dtype], [rows, 2, layout.head_size], layout.kv_bytes(num_tokens)),
    ):
        document[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(document, separators=(",", ":")).encode()
    # The format wants tensors to begin at a multiple of 8.
    return text + b" " * (-len(text) % 8)


def _parse(header: bytes) -> tuple[Scope, int]:
    """The scope and number of tokens a header states, and nothing else in it. Raises SegmentError."""
    try:
        document = json.loads(header)
        metadata = document["__metadata__"]
        (num_tokens,) = document["tokens"]["shape"]
        version = metadata["version"]
        if metadata["format"] != FORMAT:
            raise SegmentError(Miss.FOREIGN, "no segment of a redknot store")
        if version != str(FORMAT_VERSION):
            raise SegmentError(Miss.FOREIGN, f"format version {version!s:.20}, not {FORMAT_VERSION}")
        scope = _scope(metadata["fingerprint"], metadata["layout"])
        if type(num_tokens) is not int:
            raise TypeError(f"{num_tokens!r:.60} tokens")
        same = _header(metadata, scope.format, num_tokens) == header
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise SegmentError(Miss.CORRUPT, f"the header is not a segment's ({type(error).__name__})") from error
    if not same:
        raise SegmentError(Miss.CORRUPT, "the header is not as this format writes it")
    return scope, num_tokens


@lru_cache(maxsize=64)
def _scope(fingerprint: str, layout: str) -> Scope:
    return Scope.from_json({"fingerprint": json.loads(fingerprint), "format": json.loads(layout)})
