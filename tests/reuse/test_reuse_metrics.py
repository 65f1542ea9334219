"""Counts on their way from worker and scheduler to Prometheus."""

import threading
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from store_world import document, open_store, segment, serves

from vllm_redknot.reuse.connector import SegmentReuseConnector
from vllm_redknot.reuse.counters import StoreCounters
from vllm_redknot.reuse.metrics import (
    COUNTER_VALUES,
    GAUGE_VALUES,
    Changes,
    ReuseMetrics,
    ReuseStats,
)
from vllm_redknot.reuse.tracked import Totals


class Config:
    kv_transfer_config = None


def exported(data: list[dict[str, Any]]) -> dict[str, float]:
    """What /metrics says after these stats, by name and own labels."""
    registry = CollectorRegistry()

    def counter(**arguments: Any) -> Counter:
        return Counter(registry=registry, **arguments)

    def gauge(multiprocess_mode: str, **arguments: Any) -> Gauge:
        assert multiprocess_mode == "mostrecent"
        return Gauge(registry=registry, **arguments)

    types: dict[Any, Any] = {Counter: counter, Gauge: gauge, Histogram: None}
    metrics = SegmentReuseConnector.build_prom_metrics(Config, types, ["engine"], {0: ["0"]})
    assert isinstance(metrics, ReuseMetrics)
    for one in data:
        metrics.observe(one, engine_idx=0)
    return {
        sample.name + "".join(f" {v}" for k, v in sample.labels.items() if k != "engine"): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_every_number_of_store_and_tracker_has_a_metric_and_the_other_way_round() -> None:
    told = StoreCounters().snapshot().keys() | Totals().numbers().keys()
    assert told == COUNTER_VALUES | GAUGE_VALUES


def test_counters_add_up_over_steps_and_gauges_follow() -> None:
    changes = Changes()
    numbers = [
        {"hits_disk": 1, "misses_corrupt": 0, "memory_bytes": 10, "prefix_tokens": 7},
        {"hits_disk": 3, "misses_corrupt": 2, "memory_bytes": 4, "prefix_tokens": 7},
    ]
    steps = [changes.since_last(row) for row in numbers]
    assert changes.since_last(numbers[-1]) is None
    shown = exported([step.to_dict() for step in steps if step is not None])
    assert shown["vllm:redknot_reuse_hits_total disk"] == 3
    assert shown["vllm:redknot_reuse_misses_total corrupt"] == 2
    assert shown["vllm:redknot_reuse_store_bytes memory"] == 4
    assert shown["vllm:redknot_reuse_tokens_total prefix"] == 7
    # What has never happened is there too, as 0.
    assert shown["vllm:redknot_reuse_misses_total absent"] == 0
    assert shown["vllm:redknot_reuse_leases"] == 0


def test_stats_of_both_sides_of_a_step_become_one() -> None:
    worker = ReuseStats({"counters": {"hits_memory": 1}, "gauges": {"leases": 2}})
    scheduler = ReuseStats({"counters": {"requests": 3, "hits_memory": 1}, "gauges": {}})
    both = worker.aggregate(scheduler)
    assert both.reduce() == {"hits_memory": 2, "requests": 3, "leases": 2}
    assert SegmentReuseConnector.build_kv_connector_stats(both.to_dict()).reduce() == both.reduce()
    assert not both.is_empty()
    both.reset()
    assert both.is_empty()


def test_numbers_that_nobody_exports_are_no_news() -> None:
    assert Changes().since_last({"something else": 1}) is None


def test_gauges_of_a_store_follow_both_tiers(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.put(segment(document(0)))
    store.flush()
    size = segment(document(0)).nbytes
    counters = store.counters()
    assert (counters.memory_bytes, counters.disk_bytes) == (size, size)
    next((tmp_path / "store").glob("*.safetensors")).unlink()
    store.refresh(60.0)
    assert store.counters().disk_bytes == 0
    assert serves(store, document(0))
    store.check_integrity()
    store.close()


def test_an_engine_step_does_not_wait_for_a_search(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    begun, over = threading.Event(), threading.Event()

    def search() -> None:
        with store._catalog.lock:
            begun.set()
            over.wait(60)

    thread = threading.Thread(target=search)
    thread.start()
    begun.wait(60)
    assert store.counters_now() is None
    over.set()
    thread.join()
    assert store.counters_now() == store.counters()
    store.close()
