"""One request as reuse sees it: how far its lookup is, what is still to be skipped, and what it has come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from vllm_redknot.reuse.control import Control
from vllm_redknot.reuse.permitted import Repair
from vllm_redknot.reuse.plan import CleanSpan
from vllm_redknot.reuse.policy import BLEND
from vllm_redknot.reuse.spans import Span


class Scheduled(Protocol):
    """What is read of a vLLM request."""

    request_id: str
    num_computed_tokens: int
    num_in_flight_tokens: int
    num_prompt_tokens: int
    prompt_token_ids: list[int] | None
    sampling_params: Any


class Phase(Enum):
    """How far a request's lookup is."""

    LOOKING = auto()
    READY = auto()


@dataclass
class MarkedDocument:
    """A marked document that is not stored: it is read from the pages as its tokens are computed."""

    span: Span
    gathered: int  # prompt position up to which it has been read


@dataclass
class Tracked:
    """One request."""

    request: Scheduled
    control: Control
    repair: Repair
    phase: Phase = Phase.READY
    deadline: float = 0.0
    ticket: int | None = None  # of a lookup that is asked or leased
    found: tuple[CleanSpan, ...] = ()
    spans: list[CleanSpan] = field(default_factory=list)  # not yet skipped
    pending: list[CleanSpan] = field(
        default_factory=list
    )  # skipped, to be loaded when the request is scheduled
    blended: list[CleanSpan] = field(
        default_factory=list
    )  # of them some tokens are computed, not yet scheduled
    documents: list[MarkedDocument] = field(default_factory=list)
    reused_from: int | None = None  # first prompt position whose KV is not of this prompt
    prefix_tokens: int = 0
    segment_tokens: int = 0
    segments: int = 0
    faults: int = 0
    problem: str = ""
    unmarked: str = ""  # why texts of the request mark nothing

    def use(self, found: tuple[CleanSpan, ...]) -> None:
        """Take up what is stored: spans to skip, and under blend those to compute some tokens of."""
        is_blended = self.repair.blend is not None
        self.found = found
        self.spans = [span for span in found if not is_blended or span.is_exact]
        self.blended = [span for span in found if is_blended and not span.is_exact]

    def details(self) -> dict[str, Any]:
        """What the response says: prompt tokens by where their KV came from, and what went wrong."""
        prompt = self.request.num_prompt_tokens
        details: dict[str, Any] = {
            "prefix_tokens": self.prefix_tokens,
            "segment_tokens": self.segment_tokens,
            "recomputed_tokens": prompt - self.prefix_tokens - self.segment_tokens,
            "segments": self.segments,
        }
        if self.repair.blend is not None:
            details["policy"], details["share"] = BLEND, self.repair.blend.share
        if self.faults:
            details["faults"] = self.faults
        if self.problem or self.unmarked:
            details["problem"] = "; ".join(filter(None, (self.problem, self.unmarked)))
        return details


@dataclass
class Totals:
    """Since the engine started."""

    requests: int = 0
    prompt_tokens: int = 0
    prefix_tokens: int = 0
    segment_tokens: int = 0
    recomputed_tokens: int = 0
    segments: int = 0
    faults: int = 0
    timeouts: int = 0
    stored: int = 0
    not_stored: int = 0

    def numbers(self) -> dict[str, int]:
        """What the metrics have of these; the rest the store counts."""
        return {
            "requests": self.requests,
            "faults": self.faults,
            "prefix_tokens": self.prefix_tokens,
            "segment_tokens": self.segment_tokens,
            "recomputed_tokens": self.recomputed_tokens,
        }
