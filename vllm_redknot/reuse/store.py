"""The segment store of one rank: what the engine asks. Whatever goes wrong is a counted miss, never an exception."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from vllm_redknot.reuse.catalog import Catalog
from vllm_redknot.reuse.counters import StoreCounters
from vllm_redknot.reuse.disk import DiskTier
from vllm_redknot.reuse.faults import Miss, ReuseError
from vllm_redknot.reuse.finder import DEFAULT_MIN_TOKENS, Match
from vllm_redknot.reuse.lease import Lease
from vllm_redknot.reuse.loads import Loads
from vllm_redknot.reuse.scope import Scope
from vllm_redknot.reuse.segment import Segment
from vllm_redknot.reuse.spans import Span
from vllm_redknot.reuse.writes import Writes

DEADLINE_S: Final = 2.0
"""How long a request waits for one segment from disk, unless told otherwise."""
CLOSE_S: Final = 10.0


class SegmentStore:
    """Segments of one scope, in host memory and optionally on disk. Safe to call from several threads.

    Make it in the process that uses it: its threads do not survive a fork. What lies on the disk is listed when the
    store is made, for at most `deadline_s`, and after that in the background.
    """

    def __init__(
        self,
        scope: Scope,
        memory_bytes: int,
        disk: DiskTier | None = None,
        *,
        min_tokens: int = DEFAULT_MIN_TOKENS,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        if disk is not None and disk.scope != scope:
            raise ReuseError("the disk tier is of another scope: make both with the same")
        self.scope = scope
        self.deadline_s = deadline_s
        self._closed = False
        self._catalog = Catalog(scope.format, memory_bytes, min_tokens)
        self._loads = None if disk is None else Loads(self._catalog, disk)
        self._writes = None if disk is None else Writes(self._catalog, disk)
        self.refresh(deadline_s)

    def find(self, tokens: Sequence[int], spans: Iterable[Span] | None = None) -> tuple[Match, ...]:
        """Stored runs in a prompt, in order, disjoint and usable where they are; with `spans`, within these alone."""
        with self._catalog.lock:
            return self._catalog.finder.find(tokens, spans)

    def __contains__(self, content: str) -> bool:
        """Whether a segment is findable. It may yet be a miss."""
        with self._catalog.lock:
            return content in self._catalog.finder.contents

    def is_on_disk(self, content: str) -> bool:
        """Whether a segment is believed to be on disk."""
        with self._catalog.lock:
            return content in self._catalog.on_disk

    def put(self, segment: Segment) -> bool:
        """Take a segment into memory, and have it written to disk. Whether it is findable from now on.

        Raises ReuseError for a segment of another format.
        """
        if segment.format != self.scope.format:
            raise ReuseError("the segment is of another format than the store's scope")
        with self._catalog.lock:
            if self._closed:
                return False
            if segment.content not in self._catalog.memory:
                if not self._catalog.reserve(segment.nbytes):
                    self._catalog.not_stored(Miss.NO_ROOM, f"{segment.nbytes} bytes do not fit in memory")
                    return segment.content in self
                self._catalog.admit(segment, leases=0)
                self._catalog.counters.stored += 1
            if self._writes is not None:
                self._writes.write(segment)
            return True

    def acquire(self, content: str, deadline_s: float | None = None) -> Lease | None:
        """A lease on the segment of that content id, or None: a miss.

        Waits at most `deadline_s` (the store's own by default) for the disk. While a read is overdue, whatever would
        have to be read is a miss at once.
        """
        catalog = self._catalog
        with catalog.lock:
            segment = None if self._closed else catalog.memory.lease(content)
            if segment is not None:
                catalog.counters.hits_memory += 1
                return self._served(segment)
            if self._closed or self._loads is None or content not in catalog.on_disk:
                catalog.missed(Miss.ABSENT)
                return None
            if self._loads.overdue:
                catalog.missed(Miss.SLOW)
                return None
            load = self._loads.start(content)
        found = self._loads.wait(load, self.deadline_s if deadline_s is None else deadline_s)
        with catalog.lock:
            if isinstance(found, Segment):
                catalog.counters.hits_disk += 1
                return self._served(found)
            if found is Miss.SLOW:
                catalog.log.fault("computed instead", Miss.SLOW, f"segment {content} was not read in time")
            catalog.missed(found)
            return None

    def refresh(self, deadline_s: float = 0.0) -> bool:
        """List the disk anew in the background: what other processes stored or evicted. Whether it was done in time."""
        return self._writes is None or self._writes.refresh(deadline_s)

    def flush(self, deadline_s: float = CLOSE_S) -> bool:
        """Wait for writes to reach the disk; whether they all ended in time."""
        return self._writes is None or self._writes.flush(deadline_s)

    def close(self, deadline_s: float = CLOSE_S) -> None:
        """Finish writes, as far as the deadline allows, and serve nothing any more. Leases stay valid."""
        with self._catalog.lock:
            self._closed = True
        until = time.monotonic() + deadline_s
        for part in (self._writes, self._loads):
            if part is not None:
                part.close(max(0.0, until - time.monotonic()))

    def counters(self) -> StoreCounters:
        """A copy of the counters, gauges up to date."""
        with self._catalog.lock:
            return self._copied_counters()

    def counters_now(self) -> StoreCounters | None:
        """As `counters`, or None while another thread searches or changes the store: an engine step never waits."""
        if not self._catalog.lock.acquire(blocking=False):
            return None
        try:
            return self._copied_counters()
        finally:
            self._catalog.lock.release()

    def check_integrity(self) -> None:
        """Assert that memory, disk listing and finder agree."""
        with self._catalog.lock:
            self._catalog.check_integrity()

    def _served(self, segment: Segment) -> Lease:
        self._catalog.counters.bytes_served += segment.nbytes
        if self._writes is not None:
            self._writes.touch(segment.content)
        return Lease(segment, self._release)

    def _release(self, content: str) -> None:
        with self._catalog.lock:
            self._catalog.memory.release(content)

    def _copied_counters(self) -> StoreCounters:
        """With the catalog's lock held."""
        counters = self._catalog.counters.copy()
        counters.memory_bytes = self._catalog.memory.used_bytes
        counters.disk_bytes = self._catalog.disk_bytes
        counters.leases = self._catalog.memory.num_leases
        counters.segments = len(self._catalog.finder.contents)
        return counters
