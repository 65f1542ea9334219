"""A store's directory seen from outside, all scopes at once: what is in it, whether it is sound, and tidying it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_redknot.reuse.container import PIECE_BYTES, Front
from vllm_redknot.reuse.disk import check_name, front_of, read_piece
from vllm_redknot.reuse.faults import DAMAGED, Miss, SegmentError
from vllm_redknot.reuse.folder import StoredFile, StoreFolder


@dataclass(frozen=True)
class Inspected:
    """One segment file: what it holds, or what is wrong with it."""

    file: StoredFile
    front: Front | None
    reason: Miss | None = None
    problem: str = ""


@dataclass(frozen=True)
class Collected:
    """What tidying removed."""

    temporaries: int
    damaged: list[Inspected]
    evicted: list[StoredFile]


def inspect_store(path: Path, *, whole: bool) -> list[Inspected]:
    """Every segment file, least recently used first; with `whole` its KV is verified too, else its front alone.

    Raises SegmentError where the directory cannot be listed.
    """
    folder = StoreFolder(path)
    found = [_inspect(folder, file, whole) for file in folder.listing()]
    # What another process evicted meanwhile is no problem of the store.
    return [inspected for inspected in found if inspected.reason is not Miss.MISSING]


def collect(path: Path, max_bytes: int | None) -> Collected:
    """Remove what killed processes left, damaged segments, and least recently used ones beyond `max_bytes`.

    Raises SegmentError where the directory cannot be listed, locked or changed.
    """
    folder = StoreFolder(path)
    with folder.locked():
        temporaries = folder.remove_temporaries()
        damaged = [one for one in inspect_store(path, whole=True) if one.reason in DAMAGED]
        for one in damaged:
            folder.remove(one.file.name)
        evicted = [] if max_bytes is None else folder.evict(max_bytes)
    return Collected(temporaries, damaged, evicted)


def _inspect(folder: StoreFolder, file: StoredFile, whole: bool) -> Inspected:
    try:
        with folder.open(file.name) as (descriptor, size):
            front = front_of(descriptor, size)
            check_name(file.name, front)
            if whole:
                buffer = memoryview(bytearray(PIECE_BYTES))
                for at in range(0, front.kv_bytes, PIECE_BYTES):
                    read_piece(descriptor, front, at, buffer[: front.kv_bytes - at])
    except SegmentError as error:
        return Inspected(file, None, error.reason, str(error))
    return Inspected(file, front)
