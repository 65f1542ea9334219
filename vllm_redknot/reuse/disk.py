"""The disk tier: the segments of one scope in a directory that other scopes and processes share."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from vllm_redknot.reuse.container import PIECE_BYTES, Front, build_front, check_piece, read_front
from vllm_redknot.reuse.faults import Miss, SegmentError
from vllm_redknot.reuse.folder import StoredFile, StoreFolder
from vllm_redknot.reuse.scope import FILE_NAME, Scope

Allocate = Callable[[int], memoryview]
"""Bytes -> a writable buffer of them."""


@dataclass(frozen=True)
class Written:
    """What a write did: bytes of the file (0 if it was there), and the segments evicted to make room."""

    nbytes: int
    evicted: list[StoredFile]


class DiskTier:
    """Segment files within `max_bytes`, those of all scopes counted. Raises SegmentError, and nothing else.

    With `read_only` it never changes anything, and works in a directory of another owner.
    """

    def __init__(
        self,
        folder: Path,
        scope: Scope,
        max_bytes: int,
        *,
        read_only: bool = False,
        lock_timeout_s: float = 30.0,
    ) -> None:
        self.folder = StoreFolder(folder, lock_timeout_s)
        self.scope = scope
        self.max_bytes = max_bytes
        self.read_only = read_only

    def contents(self) -> frozenset[str]:
        """Content ids of the segments that are there."""
        return frozenset(file.content for file in self.folder.listing() if file.scope == self.scope.name)

    def front(self, content: str) -> Front:
        """Which tokens a segment holds; its KV is not read."""
        name = self.scope.file_name(content)
        with self.folder.open(name) as (descriptor, size):
            return _checked_front(descriptor, size, name)

    def load(self, content: str, allocate: Allocate) -> Front:
        """Read a segment's KV into a buffer of the right size and verify it there, byte for byte.

        The copy is what is verified, not a map of the file: a mapped page may change, or vanish with SIGBUS, after
        it was checked.
        """
        name = self.scope.file_name(content)
        with self.folder.open(name) as (descriptor, size):
            front = _checked_front(descriptor, size, name)
            buffer = allocate(front.kv_bytes)
            for at in range(0, front.kv_bytes, PIECE_BYTES):
                read_piece(descriptor, front, at, buffer[at : at + PIECE_BYTES])
        return front

    def write(self, tokens: bytes, content: str, kv: memoryview, leased: Collection[str] = ()) -> Written:
        """Store a segment unless it is there, evicting others first, but no content id of `leased`."""
        name = self.scope.file_name(content)
        front = build_front(self.scope, tokens, kv)
        size = len(front) + len(kv)
        if size > self.max_bytes:
            raise SegmentError(Miss.NO_ROOM, f"{name}: {size} bytes exceed the budget of {self.max_bytes}")
        with self.folder.locked():
            self.folder.remove_temporaries()
            if self.folder.holds(name):
                self.folder.touch(name)
                return Written(0, [])
            keep = {self.scope.file_name(leased_content) for leased_content in leased}
            evicted = self.folder.evict(self.max_bytes - size, keep)
            self.folder.write(name, (memoryview(front), kv))
        return Written(size, evicted)

    def touch(self, content: str) -> None:
        """Note that a segment is used."""
        self.folder.touch(self.scope.file_name(content))

    def remove(self, content: str) -> bool:
        """Unlink a segment; whether it was there."""
        return not self.read_only and self.folder.remove(self.scope.file_name(content))


def read_piece(descriptor: int, front: Front, at: int, buffer: memoryview) -> None:
    """Fill `buffer` with the piece of the KV that begins at byte `at`, and verify it. Raises SegmentError."""
    _read_into(descriptor, buffer, front.kv_offset + at)
    check_piece(front, at // PIECE_BYTES, buffer)


def front_of(descriptor: int, size: int) -> Front:
    """The front of an open file. Raises SegmentError."""

    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(min(length, max(0, size - offset)))
        _read_into(descriptor, memoryview(buffer), offset)
        return bytes(buffer)

    return read_front(read, size)


def check_name(name: str, front: Front) -> None:
    """Raises SegmentError FOREIGN where a sound file goes by another's name."""
    found = FILE_NAME.fullmatch(name)
    if found is None or found[1] != front.scope.name:
        raise SegmentError(Miss.FOREIGN, "is of another model or other settings")
    if found[2] != front.content:
        raise SegmentError(Miss.FOREIGN, "holds other tokens than its name says")


def _checked_front(descriptor: int, size: int, name: str) -> Front:
    front = front_of(descriptor, size)
    check_name(name, front)
    return front


def _read_into(descriptor: int, buffer: memoryview, offset: int) -> None:
    while buffer:
        try:
            count = os.preadv(descriptor, [buffer], offset)
        except OSError as error:
            raise SegmentError.of_os_error(error, f"reading at byte {offset}") from error
        if not count:
            raise SegmentError(Miss.TRUNCATED, f"ends at byte {offset}")
        buffer, offset = buffer[count:], offset + count
