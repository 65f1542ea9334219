"""Small segments whose KV follows from their tokens, so that a wrong byte is always seen."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vllm_redknot.reuse import disk as disk_module
from vllm_redknot.reuse.disk import DiskTier
from vllm_redknot.reuse.faults import Miss
from vllm_redknot.reuse.fingerprint import Fingerprint
from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.scope import Scope, content_id, token_bytes
from vllm_redknot.reuse.segment import Segment, byte_view
from vllm_redknot.reuse.store import SegmentStore

FINGERPRINT = Fingerprint("weights", "config", "bfloat16", "{}", "heads", model="small")
LAYOUT = SegmentFormat(
    layer_ids=(0, 3),
    head_size=4,
    dtype="bfloat16",
    window=((None, 16), (24, None)),
    sink=((0, 4), (2, 0)),
    slack=2,
)
SCOPE = Scope(FINGERPRINT, LAYOUT)
OTHER_MODEL = Scope(replace(FINGERPRINT, weights="other weights"), LAYOUT)
GLOBAL = replace(LAYOUT, window=((None, None),) * 2, sink=((0, 0),) * 2, slack=0)


def expected_kv(tokens: Sequence[int], layout: SegmentFormat = LAYOUT) -> torch.Tensor:
    """The KV that these tokens must have: bytes of a hash, as [rows, 2, D] of small numbers."""
    rows = layout.num_rows(len(tokens))
    seed = int.from_bytes(hashlib.sha256(token_bytes(tokens)).digest()[:8], "little")
    count = rows * 2 * layout.head_size
    numbers = np.random.default_rng(seed).integers(-128, 128, count)
    return torch.from_numpy(numbers).to(getattr(torch, layout.dtype)).view(rows, 2, layout.head_size)


def segment(tokens: Sequence[int], layout: SegmentFormat = LAYOUT) -> Segment:
    return Segment(layout, np.asarray(tokens, np.int32), expected_kv(tokens, layout))


def document(seed: int, num_tokens: int = 64) -> list[int]:
    """Token ids that no other seed has."""
    generator = np.random.default_rng(seed)
    return [seed, *generator.integers(0, 50_000, num_tokens - 1).tolist()]


def write(disk: DiskTier, tokens: Sequence[int]) -> str:
    """Store a document without a store; its content id."""
    kv = expected_kv(tokens, disk.scope.format)
    disk.write(token_bytes(tokens), content_id(tokens), byte_view(kv))
    return content_id(tokens)


def disk_tier(folder: Path, max_bytes: int = 2**24, scope: Scope = SCOPE) -> DiskTier:
    return DiskTier(folder, scope, max_bytes, lock_timeout_s=5.0)


def open_store(folder: Path, memory_bytes: int = 2**22, disk_bytes: int = 2**24) -> SegmentStore:
    """A store on a directory; a test that is slow for other reasons never sees its deadline."""
    return SegmentStore(SCOPE, memory_bytes, disk_tier(folder, disk_bytes), min_tokens=31, deadline_s=60.0)


def serves(store: SegmentStore, tokens: Sequence[int]) -> bool:
    """Whether a document is served; if so it must be right."""
    lease = store.acquire(content_id(tokens))
    if lease is None:
        return False
    with lease as found:
        assert found.tokens.tolist() == list(tokens)
        assert torch.equal(found.kv, expected_kv(tokens))
    return True


def only_file(folder: Path) -> Path:
    """The one segment file of a directory."""
    (path,) = folder.glob("*.safetensors")
    return path


def fault_of(store: SegmentStore, seed: int = 0) -> Miss:
    """Why a document is not served."""
    before = store.counters().misses
    assert not serves(store, document(seed))
    (reason,) = (store.counters().misses - before).elements()
    return reason


def hook_reads(monkeypatch: pytest.MonkeyPatch, hook: Callable[[], object]) -> None:
    """Call `hook` when a segment's file is open and its front read, before its KV is."""
    original: Callable[..., None] = disk_module.read_piece

    def replacement(*arguments: Any) -> None:
        hook()
        original(*arguments)

    monkeypatch.setattr(disk_module, "read_piece", replacement)


class Log(logging.Handler):
    """Remembers lines, tracebacks included."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"
