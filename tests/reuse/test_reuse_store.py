"""The store as the engine sees it: what is put is found, served and leased, from memory and from disk."""

import threading
from pathlib import Path

import pytest
import torch
from store_world import (
    GLOBAL,
    OTHER_MODEL,
    SCOPE,
    disk_tier,
    document,
    expected_kv,
    fault_of,
    hook_reads,
    only_file,
    open_store,
    segment,
    serves,
)

from vllm_redknot.reuse.faults import Miss, ReuseError
from vllm_redknot.reuse.finder import Match
from vllm_redknot.reuse.scope import content_id
from vllm_redknot.reuse.store import SegmentStore


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


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReuseError, match="another scope"):
        SegmentStore(SCOPE, 1, disk_tier(tmp_path, scope=OTHER_MODEL))
    store = SegmentStore(SCOPE, 2**20)
    with pytest.raises(ReuseError, match="another format"):
        store.put(segment(document(0), GLOBAL))
    store.close()
