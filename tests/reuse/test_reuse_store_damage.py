"""Damaged segment files: each is a counted, logged miss, never served, and stored anew."""

from collections.abc import Callable
from pathlib import Path

import pytest
from store_world import (
    OTHER_MODEL,
    Log,
    disk_tier,
    document,
    fault_of,
    only_file,
    open_store,
    segment,
    serves,
    write,
)

from vllm_redknot.reuse.faults import Miss
from vllm_redknot.reuse.store import SegmentStore


def damage(change: Callable[[Path, bytes], object]) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        change(path, path.read_bytes())

    return apply


FAULTS = {
    "unlinked": (Path.unlink, Miss.MISSING),
    "emptied": (damage(lambda path, _: path.write_bytes(b"")), Miss.TRUNCATED),
    "cut": (damage(lambda path, good: path.write_bytes(good[:-1])), Miss.TRUNCATED),
    "half-written": (damage(lambda path, good: path.write_bytes(good[: len(good) // 2])), Miss.TRUNCATED),
    "zeros at the end": (
        damage(lambda path, good: path.write_bytes(good[:-512] + bytes(512))),
        Miss.CORRUPT,
    ),
    "a flipped bit of KV": (
        damage(lambda path, good: path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])),
        Miss.CORRUPT,
    ),
    "a flipped bit of the header": (
        damage(lambda path, good: path.write_bytes(good[:12] + bytes([good[12] ^ 1]) + good[13:])),
        Miss.CORRUPT,
    ),
    "not a segment": (damage(lambda path, _: path.write_bytes(b"\xff" * 5000)), Miss.CORRUPT),
    "a link": (lambda path: (path.rename(path.parent / "x"), path.symlink_to("x")), Miss.FOREIGN),
    "other tokens": (
        lambda path: (
            write(disk_tier(path.parent / "more"), document(3)),
            only_file(path.parent / "more").rename(path),
        ),
        Miss.FOREIGN,
    ),
    "another model": (
        lambda path: (
            write(disk_tier(path.parent / "more", scope=OTHER_MODEL), document(0)),
            only_file(path.parent / "more").rename(path),
        ),
        Miss.FOREIGN,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_damaged_segment_is_a_counted_logged_miss_and_is_stored_anew(
    stored: SegmentStore, tmp_path: Path, name: str, log: Log
) -> None:
    change, reason = FAULTS[name]
    change(only_file(tmp_path / "store"))
    assert fault_of(stored) is reason
    assert f"({reason.value})" in log.text
    assert "computed instead" in log.text
    assert stored.find(document(0)) == ()
    assert stored.counters().memory_bytes == 0
    stored.check_integrity()
    assert stored.put(segment(document(0)))
    assert stored.flush()
    again = open_store(tmp_path / "store")
    assert serves(again, document(0))
    again.close()


@pytest.mark.parametrize("name", FAULTS)
def test_a_segment_damaged_before_the_start_is_never_served(tmp_path: Path, name: str) -> None:
    write(disk_tier(tmp_path / "store"), document(0))
    FAULTS[name][0](only_file(tmp_path / "store"))
    store = open_store(tmp_path / "store")
    assert not serves(store, document(0))
    store.check_integrity()
    store.close()
