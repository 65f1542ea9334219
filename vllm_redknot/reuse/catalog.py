"""What is where: segments in memory, on disk, and findable. Its users hold its lock."""

from __future__ import annotations

import threading

from vllm_redknot.reuse.counters import StoreCounters
from vllm_redknot.reuse.fault_log import FaultLog
from vllm_redknot.reuse.faults import Miss
from vllm_redknot.reuse.finder import SegmentFinder
from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.memory import MemoryTier
from vllm_redknot.reuse.segment import Segment
from vllm_redknot.reuse.windows import IntArray


class Catalog:
    """The books of one store. A segment is findable exactly while it is in memory or believed to be on disk."""

    def __init__(self, layout: SegmentFormat, memory_bytes: int, min_tokens: int) -> None:
        self.lock = threading.RLock()
        self.memory = MemoryTier(memory_bytes)
        self.finder = SegmentFinder(min_tokens)
        self.on_disk: dict[str, int] = {}
        """Content id -> tokens of the segment. Changed by `found_on_disk` and `gone_from_disk` alone."""
        self.disk_bytes = 0
        """`segment_bytes` of what is on disk."""
        self.counters = StoreCounters()
        self.log = FaultLog()
        self._layout = layout

    def segment_bytes(self, num_tokens: int) -> int:
        """`Segment.nbytes` of a segment that is not here yet."""
        return self._layout.kv_bytes(num_tokens) + 4 * num_tokens

    def reserve(self, nbytes: int) -> bool:
        """Room in memory, others evicted for it; False without room."""
        evicted = self.memory.reserve(nbytes)
        for content in evicted or ():
            self.counters.evictions_memory += 1
            self._forget_if_gone(content)
        return evicted is not None

    def admit(self, segment: Segment, leases: int) -> Segment:
        """Put a segment in its reserved room; one of the same content that is there already stays instead."""
        kept = self.memory.lease(segment.content, leases)
        if kept is not None:
            self.memory.cancel(segment.nbytes)
            return kept
        self.memory.commit(segment, leases)
        self._make_findable(segment.content, segment.tokens)
        return segment

    def found_on_disk(self, content: str, tokens: IntArray) -> None:
        """A segment is on disk now."""
        if content not in self.on_disk:
            self.on_disk[content] = len(tokens)
            self.disk_bytes += self.segment_bytes(len(tokens))
        self._make_findable(content, tokens)

    def gone_from_disk(self, content: str) -> None:
        """A segment is not on disk any more, if it was."""
        num_tokens = self.on_disk.pop(content, None)
        if num_tokens is not None:
            self.disk_bytes -= self.segment_bytes(num_tokens)
        self._forget_if_gone(content)

    def missed(self, reason: Miss) -> None:
        """Count one request for a segment that was not served."""
        self.counters.misses[reason] += 1

    def not_stored(self, reason: Miss, message: str) -> None:
        """Count one segment that was not kept, or not written."""
        self.counters.write_failures[reason] += 1
        self.log.fault("not stored", reason, message)

    def check_integrity(self) -> None:
        """Assert that the books agree."""
        self.memory.check_integrity()
        assert self.disk_bytes == sum(map(self.segment_bytes, self.on_disk.values()))
        assert self.finder.contents == self.memory.contents | self.on_disk.keys()

    def _make_findable(self, content: str, tokens: IntArray) -> None:
        count = len(tokens)
        self.finder.add(content, tokens, self._layout.min_end(count), self._layout.sinks(count))

    def _forget_if_gone(self, content: str) -> None:
        if content not in self.memory and content not in self.on_disk:
            self.finder.discard(content)
