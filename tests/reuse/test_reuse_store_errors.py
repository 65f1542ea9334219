"""Disks that are slow, full, broken or forbidden: a miss in time, logged once a minute, and nothing half-written."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from store_world import (
    Log,
    disk_tier,
    document,
    fault_of,
    hook_reads,
    open_store,
    segment,
    serves,
    write,
)

from vllm_redknot.reuse.disk import DiskTier
from vllm_redknot.reuse.faults import Miss
from vllm_redknot.reuse.folder import StoreFolder
from vllm_redknot.reuse.scope import content_id
from vllm_redknot.reuse.store import SegmentStore


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
    stored: SegmentStore, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(DiskTier, "load", lambda *_: {}["mistake"])
        assert fault_of(stored) is Miss.INTERNAL
    assert serves(stored, document(0))
    stored.check_integrity()
    # The thread answers first and logs then: the store ends when its threads have.
    stored.close()
    assert "KeyError: 'mistake'" in log.text


def test_a_full_disk_leaves_the_segment_in_memory_and_nothing_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
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
    assert "not stored (full)" in log.text
    assert serves(store, document(0))
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]
    # Put again, it is written.
    assert store.put(segment(document(0)))
    assert store.flush()
    assert store.counters().writes == 1
    store.close()


def test_a_directory_that_cannot_be_made_is_a_store_in_memory(tmp_path: Path, log: Log) -> None:
    (tmp_path / "file").write_text("")
    store = open_store(tmp_path / "file" / "store")
    assert store.put(segment(document(0)))
    assert store.flush()
    assert serves(store, document(0))
    assert store.counters().write_failures.total() == 1
    assert str(tmp_path / "file") in log.text
    store.close()


def test_faults_of_one_kind_are_logged_once_a_minute(
    stored: SegmentStore, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "preadv", fails)
    for _ in range(5):
        assert fault_of(stored) is Miss.IO
    assert log.text.count("computed instead") == 1


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
