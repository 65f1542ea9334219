"""What scheduler and worker tell each other, once per engine step, as metadata of the KV connector.

The scheduler asks the worker to look a prompt up; the worker leases what it finds and answers with spans. Only then
does the scheduler skip tokens, so that a load is a copy from host memory that cannot fail.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from vllm_redknot.reuse.plan import CleanSpan
from vllm_redknot.reuse.policy import Blend
from vllm_redknot.reuse.spans import Span

BlockIds = tuple[list[int], ...]
"""Per KV-cache group, the block of each page of a request; 0 where it has none."""


@dataclass(frozen=True)
class Lookup:
    """Find what is stored of a prompt, and lease it until the ticket is released."""

    ticket: int
    tokens: npt.NDArray[np.int32]  # [n], the prompt
    spans: tuple[Span, ...]
    boundary: int
    texts: tuple[str, ...] = ()  # documents of the prompt beside the spans
    reuse: bool = True  # without it the answer has no spans, only which of the documents are missing


@dataclass(frozen=True)
class Load:
    """Write a leased span into a request's pages, before this step's forward pass."""

    request_id: str
    ticket: int
    span: CleanSpan
    reader: int  # position of the first token that is computed behind it
    blocks: BlockIds
    blend: Blend | None = None  # the span's tokens are part of this step, and so many of them are computed


@dataclass(frozen=True)
class Gather:
    """Read document tokens [start, stop) out of a request's pages, after this step's forward pass.

    The document stands at `span` of the prompt; positions are the prompt's. The gather that reaches its end stores it.
    """

    request_id: str
    span: Span
    start: int
    stop: int
    blocks: BlockIds
    tokens: npt.NDArray[np.int32] | None = None  # of the document, with the last gather


@dataclass
class ReuseMetadata(KVConnectorMetadata):
    """The scheduler's part of a step, done in this order; the forward pass runs between loads and gathers."""

    lookups: list[Lookup] = field(default_factory=list)
    drops: list[tuple[str, Span]] = field(default_factory=list)  # unfinished documents to forget
    loads: list[Load] = field(default_factory=list)
    gathers: list[Gather] = field(default_factory=list)
    releases: list[int] = field(default_factory=list)  # tickets


@dataclass(frozen=True)
class Found:
    """The answer to a lookup."""

    ticket: int
    spans: tuple[CleanSpan, ...]  # leased
    missing: tuple[Span, ...]  # marked documents that are not stored
    faults: int  # segments that were listed and could not be had
    problem: str = ""  # why texts are no marks


@dataclass
class ReuseReport(KVConnectorWorkerMetadata):
    """The worker's part of a step."""

    found: list[Found] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # requests whose pages could not be written
    stored: int = 0  # documents taken into the store
    failed: int = 0  # documents that could not be

    def aggregate(self, other: KVConnectorWorkerMetadata) -> ReuseReport:
        """Not used: with several workers reuse is refused at the start."""
        raise NotImplementedError("KV reuse serves one worker")
