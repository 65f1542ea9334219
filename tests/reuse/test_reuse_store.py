"""The store as the engine sees it: leases, deadlines, and every fault a counted miss."""

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from store_world import (
    GLOBAL,
    OTHER_MODEL,
    SCOPE,
    disk_tier,
    document,
    expected_kv,
    only_file,
    open_store,
    segment,
    serves,
    write,
)

from vllm_redknot.reuse import disk as disk_module
from vllm_redknot.reuse.disk import DiskTier
from vllm_redknot.reuse.faults import Miss, ReuseError
from vllm_redknot.reuse.finder import Match
from vllm_redknot.reuse.folder import StoreFolder
from vllm_redknot.reuse.scope import content_id
from vllm_redknot.reuse.store import SegmentStore

ReadPiece = Callable[..., None]


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[SegmentStore]:
    """A store that knows document 0 from its directory, and has read nothing of it."""
    write(disk_tier(tmp_path / "store"), document(0))
    store = open_store(tmp_path / "store")
    yield store
    store.close()


def fault_of(store: SegmentStore, seed: int = 0) -> Miss:
    """Why a document is not served."""
    before = store.counters().misses
    assert not serves(store, document(seed))
    (reason,) = (store.counters().misses - before).elements()
    return reason


def hook_reads(monkeypatch: pytest.MonkeyPatch, hook: Callable[[], object]) -> None:
    """Call `hook` when a segment's file is open and its front read, before its KV is."""
    original: ReadPiece = disk_module.read_piece

    def replacement(*arguments: Any) -> None:
        hook()
        original(*arguments)

    monkeypatch.setattr(disk_module, "read_piece", replacement)


def test_a_segment_put_is_found_and_served_from_memory_then_from_disk(tmp_path: Path) -> None:
    first = open_store(tmp_path / "store")
    tokens = document(0)
    assert not serves(first, tokens)
    assert first.put(segment(tokens))
    assert content_id(tokens) in first
    assert serves(first, tokens)
    assert first.flush()
    counters = first.counters().snapshot()
    expected = {"hits_memory": 1, "hits_disk": 0, "misses_absent": 1, "stored": 1, "writes": 1, "segments": 1}
    assert {key: counters[key] for key in expected} == expected
    size = segment(tokens).nbytes
    assert counters["bytes_served"] == counters["memory_bytes"] == size
    assert counters["bytes_written"] == only_file(tmp_path / "store").stat().st_size
    first.close()
    second = open_store(tmp_path / "store")
    assert second.find([9, *tokens, 9]) == (Match(1, 65, content_id(tokens), 0),)
    assert serves(second, tokens)
    assert serves(second, tokens)
    found = second.counters()
    assert (found.hits_disk, found.hits_memory, found.bytes_loaded, found.leases) == (1, 1, size, 0)
    second.check_integrity()
    second.close()
    assert not serves(second, tokens)
    assert not second.put(segment(document(1)))


def test_without_a_directory_the_store_is_memory_alone() -> None:
    store = SegmentStore(SCOPE, segment(document(0)).nbytes, min_tokens=31)
    assert store.put(segment(document(0)))
    assert store.put(segment(document(1)))
    assert not serves(store, document(0))
    assert store.find(document(0)) == ()
    assert serves(store, document(1))
    assert store.counters().evictions_memory == 1
    assert store.flush()
    assert store.refresh()
    store.check_integrity()
    store.close()


def test_a_leased_segment_outlives_any_pressure_and_a_released_one_does_not(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", memory_bytes=2 * segment(document(0)).nbytes)
    store.put(segment(document(0)))
    store.flush()
    lease = store.acquire(content_id(document(0)))
    assert lease is not None
    for seed in range(1, 6):
        store.put(segment(document(seed)))
        store.flush()
    assert torch.equal(lease.segment.kv, expected_kv(document(0)))
    with store.acquire(content_id(document(5))) or pytest.fail("evicted"):
        assert not store.put(segment(document(9)))
        assert fault_of(store, 1) is Miss.NO_ROOM
        assert store.counters().write_failures[Miss.NO_ROOM] == 1
    lease.release()
    lease.release()
    assert store.counters().leases == 0
    assert serves(store, document(1))
    assert store.put(segment(document(9)))
    store.check_integrity()
    store.close()


def test_many_threads_that_want_one_segment_read_it_once(
    stored: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, begin = [], threading.Event()
    hook_reads(monkeypatch, lambda: (begin.wait(30), reads.append(1)))
    served: list[bool] = []
    threads = [threading.Thread(target=lambda: served.append(serves(stored, document(0)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    begin.set()
    for thread in threads:
        thread.join()
    assert served == [True] * 8
    assert reads == [1]
    assert stored.counters().leases == 0


def test_a_slow_disk_is_a_miss_in_time_and_the_segment_is_there_later(
    stored: SegmentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(disk_tier(tmp_path / "store"), document(1))
    assert stored.refresh(60.0)
    reading, slow = threading.Event(), threading.Event()
    hook_reads(monkeypatch, lambda: (reading.set(), slow.wait(60)))
    assert stored.acquire(content_id(document(0)), deadline_s=0.0) is None
    assert reading.wait(30)
    # While that read is overdue nobody waits for the disk; memory serves on.
    stored.deadline_s = 3600.0
    assert fault_of(stored, 1) is Miss.SLOW
    assert stored.put(segment(document(2)))
    assert serves(stored, document(2))
    assert stored.counters().misses == {Miss.SLOW: 2}
    slow.set()
    while not stored.counters().bytes_loaded:
        time.sleep(0.001)
    assert serves(stored, document(0))
    assert stored.counters().hits_memory == 2
    assert serves(stored, document(1))
    stored.check_integrity()


def test_a_prefetched_segment_is_waited_for_not_read_twice(
    stored: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    hook_reads(monkeypatch, lambda: reads.append(1))
    stored.prefetch([content_id(document(0)), content_id(document(7))])
    assert serves(stored, document(0))
    assert reads == [1]


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
    stored: SegmentStore, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    change, reason = FAULTS[name]
    change(only_file(tmp_path / "store"))
    with caplog.at_level(logging.WARNING):
        assert fault_of(stored) is reason
    assert f"({reason.value})" in caplog.text
    assert "computed instead" in caplog.text
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


def test_a_segment_evicted_by_another_process_while_it_is_read_is_served(
    stored: SegmentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook_reads(monkeypatch, lambda: only_file(tmp_path / "store").unlink())
    assert serves(stored, document(0))


def test_a_file_cut_while_it_is_read_is_a_miss_and_no_signal(
    stored: SegmentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook_reads(monkeypatch, lambda: os.truncate(only_file(tmp_path / "store"), 700))
    assert fault_of(stored) is Miss.TRUNCATED


@pytest.mark.parametrize(("number", "reason"), [(errno.EIO, Miss.IO), (errno.EACCES, Miss.DENIED)])
def test_an_error_of_the_device_is_a_miss_for_as_long_as_it_lasts(
    stored: SegmentStore, monkeypatch: pytest.MonkeyPatch, number: int, reason: Miss
) -> None:
    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fails)
        assert fault_of(stored) is reason
        assert fault_of(stored) is reason
    assert serves(stored, document(0))


def test_a_mistake_of_ours_is_a_miss_too(
    stored: SegmentStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DiskTier, "load", lambda *_: {}["mistake"])
        assert fault_of(stored) is Miss.INTERNAL
    assert serves(stored, document(0))
    stored.check_integrity()
    # The thread answers first and logs then: the store ends when its threads have.
    stored.close()
    assert "KeyError: 'mistake'" in caplog.text


def test_a_full_disk_leaves_the_segment_in_memory_and_nothing_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(tmp_path / "store")
    original = os.write

    def half(descriptor: int, content: memoryview) -> int:
        if len(content) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(descriptor, content[: len(content) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        assert store.put(segment(document(0)))
        assert store.flush()
    assert store.counters().write_failures == {Miss.FULL: 1}
    assert "not stored (full)" in caplog.text
    assert serves(store, document(0))
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]
    # Put again, it is written.
    assert store.put(segment(document(0)))
    assert store.flush()
    assert store.counters().writes == 1
    store.close()


def test_a_directory_that_cannot_be_made_is_a_store_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = open_store(tmp_path / "file" / "store")
    assert store.put(segment(document(0)))
    assert store.flush()
    assert serves(store, document(0))
    assert store.counters().write_failures.total() == 1
    assert str(tmp_path / "file") in caplog.text
    store.close()


def test_faults_of_one_kind_are_logged_once_a_minute(
    stored: SegmentStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "preadv", fails)
    for _ in range(5):
        assert fault_of(stored) is Miss.IO
    assert caplog.text.count("computed instead") == 1


def test_what_other_processes_store_and_evict_is_seen_after_a_refresh(
    stored: SegmentStore, tmp_path: Path
) -> None:
    other = disk_tier(tmp_path / "store")
    write(other, document(1))
    other.remove(content_id(document(0)))
    assert fault_of(stored, 1) is Miss.ABSENT
    assert stored.refresh(60.0)
    assert fault_of(stored, 0) is Miss.ABSENT
    assert serves(stored, document(1))
    stored.check_integrity()


def test_a_hot_segment_keeps_its_file_from_being_evicted(tmp_path: Path) -> None:
    disk = disk_tier(tmp_path / "store")
    for seed in range(3):
        write(disk, document(seed))
    store = open_store(tmp_path / "store", disk_bytes=sum(file.nbytes for file in disk.folder.listing()))
    assert serves(store, document(0))
    store.flush()
    assert store.put(segment(document(3)))
    store.flush()
    assert disk.contents() == {content_id(document(seed)) for seed in (0, 2, 3)}
    assert store.counters().evictions_disk == 1
    assert content_id(document(1)) not in store
    store.check_integrity()
    store.close()


def test_a_read_only_store_changes_nothing(tmp_path: Path) -> None:
    writer = disk_tier(tmp_path / "store")
    for seed in range(2):
        write(writer, document(seed))
    only = min((tmp_path / "store").glob("*.safetensors"))
    only.write_bytes(b"bad")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "store").iterdir()}
    reader = SegmentStore(
        SCOPE, 2**20, DiskTier(tmp_path / "store", SCOPE, 1, read_only=True), deadline_s=60.0
    )
    assert sum(serves(reader, document(seed)) for seed in range(2)) == 1
    assert reader.put(segment(document(5)))
    reader.flush()
    reader.close()
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert set((tmp_path / "store").iterdir()) == set(before)


def test_more_writes_than_can_wait_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_redknot.reuse.writes.MAX_WAITING", 2)
    store = open_store(tmp_path / "store")
    with StoreFolder(tmp_path / "store").locked():
        for seed in range(4):
            assert store.put(segment(document(seed)))
        assert store.counters().write_failures == {Miss.BUSY: 2}
        assert not store.flush(0.0)
    assert store.flush()
    assert store.counters().writes == 2
    assert store.counters().leases == 0
    store.close()


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReuseError, match="another scope"):
        SegmentStore(SCOPE, 1, disk_tier(tmp_path, scope=OTHER_MODEL))
    store = SegmentStore(SCOPE, 2**20)
    with pytest.raises(ReuseError, match="another format"):
        store.put(segment(document(0), GLOBAL))
    store.close()
