"""What a store did, as plain numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from vllm_redknot.reuse.faults import Miss


@dataclass
class StoreCounters:
    """Totals since the store was opened, but for the gauges. Bytes are of K, V and token ids, or of files."""

    hits_memory: int = 0
    hits_disk: int = 0
    misses: Counter[Miss] = field(default_factory=Counter)
    bytes_served: int = 0
    """Of hits."""
    bytes_loaded: int = 0
    """Read from disk and verified."""
    stored: int = 0
    """Segments taken into memory by `put`."""
    writes: int = 0
    bytes_written: int = 0
    write_failures: Counter[Miss] = field(default_factory=Counter)
    evictions_memory: int = 0
    evictions_disk: int = 0
    removed_damaged: int = 0
    memory_bytes: int = 0
    """Gauge: held in host memory now, what is being loaded included."""
    disk_bytes: int = 0
    """Gauge: K, V and token ids of this store's segments that are believed to be on disk."""
    leases: int = 0
    """Gauge: leases that are out, those of segments being written included."""
    segments: int = 0
    """Gauge: segments that can be found now."""

    def copy(self) -> StoreCounters:
        """Counters that stay as they are."""
        return replace(self, misses=self.misses.copy(), write_failures=self.write_failures.copy())

    def snapshot(self) -> dict[str, int]:
        """A copy with one number a name; reasons are written out, such as `misses_corrupt`."""
        numbers = {key: value for key, value in vars(self).items() if isinstance(value, int)}
        for reason in Miss:
            numbers[f"misses_{reason.value}"] = self.misses[reason]
            numbers[f"write_failures_{reason.value}"] = self.write_failures[reason]
        return numbers
