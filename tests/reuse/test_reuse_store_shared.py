"""A directory that other processes read, write and evict from at the same time."""

import os
from pathlib import Path

import pytest
from store_world import (
    SCOPE,
    disk_tier,
    document,
    fault_of,
    hook_reads,
    only_file,
    open_store,
    segment,
    serves,
    write,
)

from vllm_redknot.reuse.disk import DiskTier
from vllm_redknot.reuse.faults import Miss
from vllm_redknot.reuse.scope import content_id
from vllm_redknot.reuse.store import SegmentStore


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
