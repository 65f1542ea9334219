"""The host memory tier: segments within a byte budget, least recently used out first, leased ones never."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass

from vllm_redknot.reuse.segment import Segment


@dataclass
class _Entry:
    segment: Segment
    leases: int = 0


class MemoryTier:
    """Segments by content id. Bytes held and reserved never exceed `max_bytes`. Not thread-safe: the store locks."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self.num_leases = 0
        self._reserved = 0
        # Least recently used first.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __contains__(self, content: str) -> bool:
        return content in self._entries

    @property
    def contents(self) -> Set[str]:
        return self._entries.keys()

    @property
    def leased(self) -> frozenset[str]:
        """The segments that are in use."""
        return frozenset(content for content, entry in self._entries.items() if entry.leases)

    def lease(self, content: str, leases: int = 1) -> Segment | None:
        """The segment, most recently used from now on, and kept until as many `release`s; None if it is not here."""
        entry = self._entries.get(content)
        if entry is None:
            return None
        entry.leases += leases
        self.num_leases += leases
        self._entries.move_to_end(content)
        return entry.segment

    def release(self, content: str) -> None:
        """Give back one lease."""
        entry = self._entries[content]
        assert entry.leases > 0, f"segment {content} has no lease to release"
        entry.leases -= 1
        self.num_leases -= 1

    def reserve(self, nbytes: int) -> list[str] | None:
        """Room for `nbytes`, held until `commit` or `cancel`. Returns what was evicted for it, or None without room.

        Without room nothing is evicted.
        """
        idle = [(content, entry) for content, entry in self._entries.items() if not entry.leases]
        missing = self.used_bytes + nbytes - self.max_bytes
        if missing > sum(entry.segment.nbytes for _, entry in idle):
            return None
        evicted = []
        for content, entry in idle:
            if missing <= 0:
                break
            missing -= entry.segment.nbytes
            self.used_bytes -= entry.segment.nbytes
            del self._entries[content]
            evicted.append(content)
        self.used_bytes += nbytes
        self._reserved += nbytes
        return evicted

    def cancel(self, nbytes: int) -> None:
        """Give back reserved room."""
        self.used_bytes -= nbytes
        self._reserved -= nbytes

    def commit(self, segment: Segment, leases: int) -> None:
        """Fill reserved room with a segment that is not here yet and has that many leases."""
        assert segment.content not in self._entries
        self._reserved -= segment.nbytes
        self._entries[segment.content] = _Entry(segment, leases)
        self.num_leases += leases

    def check_integrity(self) -> None:
        """Assert that the books balance."""
        held = sum(entry.segment.nbytes for entry in self._entries.values())
        assert self.used_bytes == held + self._reserved <= max(self.max_bytes, 0)
        assert all(entry.leases >= 0 for entry in self._entries.values())
        assert self.num_leases == sum(entry.leases for entry in self._entries.values())
        assert self._reserved >= 0
