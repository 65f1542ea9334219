"""Segments on their way to disk, written in the background; and the directory, listed and touched."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

import numpy as np

from vllm_redknot.reuse.catalog import Catalog
from vllm_redknot.reuse.disk import DiskTier
from vllm_redknot.reuse.faults import DAMAGED, Miss, SegmentError
from vllm_redknot.reuse.scope import token_bytes
from vllm_redknot.reuse.segment import Segment, byte_view
from vllm_redknot.reuse.workers import Workers

MAX_WAITING: Final = 64
"""Segments that wait to be written; more are not."""
TOUCH_S: Final = 60.0
"""A segment's last use is noted on disk at most this often."""


class Writes:
    """One background thread that writes, one that lists. A segment that waits is leased, so memory keeps it."""

    def __init__(self, catalog: Catalog, disk: DiskTier) -> None:
        self._catalog = catalog
        self._disk = disk
        self._writing: set[str] = set()
        self._touched: dict[str, float] = {}
        self._listing = Workers("redknot-list", 1)
        self._workers = Workers("redknot-write", 1)

    def write(self, segment: Segment) -> None:
        """Write a segment that is in memory, unless it is on disk or on its way. The catalog's lock is held."""
        content = segment.content
        if self._disk.read_only or content in self._writing or content in self._catalog.on_disk:
            return
        if len(self._writing) >= MAX_WAITING:
            self._catalog.not_stored(Miss.BUSY, f"{len(self._writing)} segments wait to be written")
            return
        self._catalog.memory.lease(content)
        self._writing.add(content)
        self._workers.submit(lambda: self._run(segment))

    def touch(self, content: str) -> None:
        """Tell other processes, and a later start, that a segment is used. The catalog's lock is held."""
        if self._disk.read_only or content not in self._catalog.on_disk:
            return
        now = time.monotonic()
        if now - self._touched.get(content, -TOUCH_S) >= TOUCH_S:
            self._touched[content] = now
            self._workers.submit(lambda: self._disk.touch(content))

    def refresh(self, deadline_s: float) -> bool:
        """List the directory anew; whether that was done in time."""
        if not self._listing.outstanding:
            self._listing.submit(self._list)
        return self._listing.drain(deadline_s)

    def flush(self, deadline_s: float) -> bool:
        """Wait for all writes; whether they ended in time."""
        return self._workers.drain(deadline_s)

    def close(self, deadline_s: float) -> None:
        """Finish what waits, as far as the deadline allows."""
        self._workers.close(deadline_s)
        self._listing.close(deadline_s)

    def _run(self, segment: Segment) -> None:
        content, catalog = segment.content, self._catalog
        try:
            with catalog.lock:
                leased = catalog.memory.leased
            written = self._disk.write(
                token_bytes(segment.tokens.tolist()), content, byte_view(segment.kv), leased
            )
            with catalog.lock:
                catalog.found_on_disk(content, segment.tokens)
                catalog.counters.writes += written.nbytes > 0
                catalog.counters.bytes_written += written.nbytes
                catalog.counters.evictions_disk += len(written.evicted)
                for file in written.evicted:
                    if file.scope == self._disk.scope.name:
                        catalog.gone_from_disk(file.content)
                        self._touched.pop(file.content, None)
        except SegmentError as error:
            with catalog.lock:
                catalog.not_stored(error.reason, str(error))
        finally:
            with catalog.lock:
                self._writing.discard(content)
                catalog.memory.release(content)

    def _list(self) -> None:
        """Take in what other processes, or an earlier start, stored and evicted."""
        catalog = self._catalog
        with catalog.lock:
            before = frozenset(catalog.on_disk)
        try:
            there = self._disk.contents()
        except SegmentError as error:
            with catalog.lock:
                catalog.log.fault("directory not listed", error.reason, str(error))
            return
        for content in sorted(there - before):
            self._take_in(content)
        with catalog.lock:
            for content in before - there:
                catalog.gone_from_disk(content)

    def _take_in(self, content: str) -> None:
        catalog, removed = self._catalog, False
        try:
            tokens = np.frombuffer(self._disk.front(content).tokens, "<i4").astype(np.int32)
            with catalog.lock:
                catalog.found_on_disk(content, tokens)
        except SegmentError as error:
            if error.reason in DAMAGED:
                with suppress(SegmentError):
                    removed = self._disk.remove(content)
            with catalog.lock:
                catalog.counters.removed_damaged += removed
                catalog.log.fault("not listed", error.reason, str(error))
