"""The segment store of one rank: what the engine asks. Whatever goes wrong is a counted miss, never an exception."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType

from vllm_redknot.reuse.counters import StoreCounters
from vllm_redknot.reuse.faults import Miss
from vllm_redknot.reuse.memory import MemoryTier
from vllm_redknot.reuse.scope import Scope
from vllm_redknot.reuse.segment import Segment


class Lease:
    """A segment in use: it stays in memory until `release`, or the end of the `with` block."""

    def __init__(self, store: SegmentStore, segment: Segment) -> None:
        self.segment = segment
        self._store: SegmentStore | None = store

    def release(self) -> None:
        """Give the segment back; a second call does nothing."""
        store, self._store = self._store, None
        if store is not None:
            store._release(self.segment.content)

    def __enter__(self) -> Segment:
        return self.segment

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class SegmentStore:
    """Segments of one scope, in host memory and optionally on disk. Safe to call from several threads.

    The interface (`find`, the disk tier and `prefetch` join below):
        put(segment) -> bool                       take a segment into memory; a background thread writes it to disk
        acquire(content, deadline_s) -> Lease?     a lease on a segment, from memory or disk; None is a miss
        find(tokens, spans) -> tuple[Match, ...]   stored runs in a prompt
    """

    def __init__(self, scope: Scope, memory_bytes: int) -> None:
        self.scope = scope
        self.counters = StoreCounters()
        self._memory = MemoryTier(memory_bytes)
        self._lock = threading.RLock()

    def put(self, segment: Segment) -> bool:
        """Take a segment. Returns whether it can be found from now on; True too where it already could."""
        with self._lock:
            if segment.content in self._memory:
                return True
            evicted = self._memory.reserve(segment.nbytes)
            if evicted is None:
                self.counters.write_failures[Miss.NO_ROOM] += 1
                return False
            self._memory.commit(segment, leases=0)
            self.counters.evictions_memory += len(evicted)
            self.counters.stored += 1
            return True

    def acquire(self, content: str, deadline_s: float | None = None) -> Lease | None:
        """A lease on the segment of that content id, waiting at most `deadline_s` for the disk; None is a miss."""
        with self._lock:
            segment = self._memory.lease(content)
            if segment is None:
                self.counters.misses[Miss.ABSENT] += 1
                return None
            self.counters.hits_memory += 1
            self.counters.bytes_served += segment.nbytes
            return Lease(self, segment)

    def _release(self, content: str) -> None:
        with self._lock:
            self._memory.release(content)
