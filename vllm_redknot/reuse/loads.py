"""Segments on their way from disk to memory, read by background threads and awaited with a deadline."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from vllm_redknot.reuse.catalog import Catalog
from vllm_redknot.reuse.disk import DiskTier
from vllm_redknot.reuse.faults import DAMAGED, Miss, SegmentError
from vllm_redknot.reuse.segment import Segment, byte_view, torch_dtype
from vllm_redknot.reuse.workers import Workers

LOADERS: Final = 4
"""Threads that read the disk: the documents of one prompt at once."""


@dataclass(eq=False)
class Load:
    """One segment. Each of the `waiters` holds a lease of it when it is there."""

    waiters: int = 0
    late: bool = False
    fault: Miss = Miss.INTERNAL
    segment: Segment | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Loads:
    """Reads one segment once, however many wait for it. `overdue` counts reads that somebody gave up waiting for."""

    def __init__(self, catalog: Catalog, disk: DiskTier) -> None:
        self.overdue = 0
        self._catalog = catalog
        self._disk = disk
        self._loads: dict[str, Load] = {}
        self._workers = Workers("redknot-load", LOADERS)

    def start(self, content: str) -> Load:
        """Begin to read a segment, or join those who wait for it; `wait` must follow. The catalog's lock is held."""
        load = self._loads.get(content)
        if load is None:
            load = self._loads[content] = Load()
            self._workers.submit(lambda: self._run(content, load))
        load.waiters += 1
        return load

    def wait(self, load: Load, deadline_s: float) -> Segment | Miss:
        """The segment with a lease for this waiter, or why there is none. The catalog's lock is not held."""
        load.done.wait(deadline_s)
        with self._catalog.lock:
            if load.done.is_set():
                return load.segment or load.fault
            load.waiters -= 1
            self.overdue += not load.late
            load.late = True
            return Miss.SLOW

    def close(self, deadline_s: float) -> bool:
        """Wait for what is being read; whether it ended in time."""
        return self._workers.close(deadline_s)

    def _run(self, content: str, load: Load) -> None:
        segment = None
        try:
            segment = self._read(content)
        except SegmentError as error:
            load.fault = error.reason
            self._lost(content, error)
        finally:
            with self._catalog.lock:
                del self._loads[content]
                self.overdue -= load.late
                if segment is not None:
                    self._catalog.counters.bytes_loaded += segment.nbytes
                    load.segment = self._catalog.admit(segment, load.waiters)
                load.done.set()

    def _read(self, content: str) -> Segment:
        """The verified segment, its room in memory reserved. On an error nothing is reserved."""
        with self._catalog.lock:
            num_tokens = self._catalog.on_disk.get(content)
            if num_tokens is None:
                raise SegmentError(Miss.MISSING, f"segment {content} was evicted")
            nbytes = self._catalog.segment_bytes(num_tokens)
            if not self._catalog.reserve(nbytes):
                raise SegmentError(Miss.NO_ROOM, f"segment {content}: {nbytes} bytes do not fit in memory")
        try:
            return read_segment(self._disk, content)
        except BaseException:
            with self._catalog.lock:
                self._catalog.memory.cancel(nbytes)
            raise

    def _lost(self, content: str, error: SegmentError) -> None:
        """Forget what is not there, and remove what is damaged so that it is stored anew."""
        removed = False
        if error.reason in DAMAGED:
            with suppress(SegmentError):
                removed = self._disk.remove(content)
        with self._catalog.lock:
            self._catalog.counters.removed_damaged += removed
            self._catalog.log.fault("computed instead", error.reason, str(error))
            if error.reason in DAMAGED or error.reason is Miss.MISSING:
                self._catalog.gone_from_disk(content)


def read_segment(disk: DiskTier, content: str) -> Segment:
    """A segment from disk, verified. Raises SegmentError."""
    layout = disk.scope.format
    kv = torch.empty(0)

    def allocate(nbytes: int) -> memoryview:
        nonlocal kv
        kv = torch.empty((nbytes // layout.row_bytes, 2, layout.head_size), dtype=torch_dtype(layout))
        return byte_view(kv)

    front = disk.load(content, allocate)
    return Segment(layout, np.frombuffer(front.tokens, "<i4").astype(np.int32), kv)
