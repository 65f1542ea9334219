"""Reuse among vLLM's own metrics: what worker and scheduler count travels with each step to the API server.

vLLM has a way for its KV connectors: `KVConnectorStats` of both sides are added up and sent with a step's output, and
the server hands them to the connector's `KVConnectorPromMetrics`. So /metrics is as of the last step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from prometheus_client import Counter, Gauge
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from vllm_redknot.reuse.faults import Miss

PREFIX: Final = "vllm:redknot_reuse_"
COUNTERS: Final = "counters"
GAUGES: Final = "gauges"


class Family(NamedTuple):
    """One Prometheus metric.

    Attributes:
        name: without `PREFIX`; Prometheus ends a counter's with `_total`.
        documentation: what it counts, with its unit.
        label: what its values are told apart by, empty for one value.
        values: what the stats call a value -> its label's value.
        gauge: whether it goes up and down.
    """

    name: str
    documentation: str
    label: str
    values: Mapping[str, str]
    gauge: bool = False


def _reasons(prefix: str) -> dict[str, str]:
    return {f"{prefix}_{reason.value}": reason.value for reason in Miss}


FAMILIES: Final = (
    Family(
        "tokens",
        "Prompt tokens of ended requests by where their KV came from",
        "kind",
        {"prefix_tokens": "prefix", "segment_tokens": "segment", "recomputed_tokens": "recomputed"},
    ),
    Family("requests", "Requests, those that cannot be served with reuse included", "", {"requests": ""}),
    Family("faults", "Stored KV that a request was to have and did not get in time", "", {"faults": ""}),
    Family("hits", "Segments served", "tier", {"hits_memory": "memory", "hits_disk": "disk"}),
    Family("misses", "Segments found in a prompt and not served", "reason", _reasons("misses")),
    Family("served_bytes", "Bytes of segments served", "", {"bytes_served": ""}),
    Family("loaded_bytes", "Bytes of segments read from disk and verified", "", {"bytes_loaded": ""}),
    Family("writes", "Segment files written", "", {"writes": ""}),
    Family("written_bytes", "Bytes of segment files written", "", {"bytes_written": ""}),
    Family("stored", "Documents taken into the store", "", {"stored": ""}),
    Family("write_failures", "Documents not kept, or not written", "reason", _reasons("write_failures")),
    Family(
        "evictions",
        "Segments evicted for others",
        "tier",
        {"evictions_memory": "memory", "evictions_disk": "disk"},
    ),
    Family("removed_damaged", "Damaged segment files removed", "", {"removed_damaged": ""}),
    Family(
        "store_bytes",
        "Bytes of segments held now; of the disk those this server can use",
        "tier",
        {"memory_bytes": "memory", "disk_bytes": "disk"},
        gauge=True,
    ),
    Family("segments", "Segments that can be found now", "", {"segments": ""}, gauge=True),
    Family("leases", "Leases of segments that are out now", "", {"leases": ""}, gauge=True),
)
GAUGE_VALUES: Final = frozenset(key for family in FAMILIES if family.gauge for key in family.values)
COUNTER_VALUES: Final = frozenset(key for family in FAMILIES if not family.gauge for key in family.values)


class ReuseStats(KVConnectorStats):
    """What was counted in some steps, and gauges after the last of them: `data` is a JSON object of both."""

    data: dict[str, Any]

    def reset(self) -> None:
        """Forget everything."""
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> ReuseStats:
        """Add what was counted; gauges are the newer ones."""
        counters = self.data.setdefault(COUNTERS, {})
        for key, value in other.data.get(COUNTERS, {}).items():
            counters[key] = counters.get(key, 0) + value
        self.data.setdefault(GAUGES, {}).update(other.data.get(GAUGES, {}))
        return self

    def reduce(self) -> dict[str, int | float]:
        """One number a name, for vLLM's log."""
        return {**self.data.get(COUNTERS, {}), **self.data.get(GAUGES, {})}

    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not any(self.data.values())


class Changes:
    """Turns running totals into stats of what is new."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def since_last(self, numbers: Mapping[str, int]) -> ReuseStats | None:
        """Stats of what has changed; None if nothing has. Names that no metric has are left out."""
        last, now = self._last, dict(numbers)
        if now == last:
            return None
        self._last = now
        new = {key: now[key] - last.get(key, 0) for key in now.keys() & COUNTER_VALUES}
        stats = ReuseStats(
            {
                COUNTERS: {key: value for key, value in new.items() if value},
                GAUGES: {key: now[key] for key in now.keys() & GAUGE_VALUES},
            }
        )
        return None if stats.is_empty() else stats


class ReuseMetrics(KVConnectorPromMetrics):
    """The metrics of the API server's process: one value per engine, every label's value from the start."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._values: dict[tuple[int, str], Any] = {}
        for family in FAMILIES:
            more: dict[str, Any] = {"multiprocess_mode": "mostrecent"} if family.gauge else {}
            metric = metric_types[Gauge if family.gauge else Counter](
                name=PREFIX + family.name,
                documentation=f"{family.documentation}.",
                labelnames=[*labelnames, *([family.label] if family.label else [])],
                **more,
            )
            for engine, engine_labels in per_engine_labelvalues.items():
                for key, value in family.values.items():
                    labels = [*engine_labels, *([value] if family.label else [])]
                    self._values[engine, key] = metric.labels(*labels)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Take in the `data` of stats."""
        for key, value in transfer_stats_data.get(COUNTERS, {}).items():
            self._values[engine_idx, key].inc(value)
        for key, value in transfer_stats_data.get(GAUGES, {}).items():
            self._values[engine_idx, key].set(value)
