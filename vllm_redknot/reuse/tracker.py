"""The scheduler's side of reuse: for every request, which spans are skipped when, and what it has come to.

Knows no scheduler: `span_scheduler` and `connector` call it, and `Scheduled` is all it reads of vLLM's requests.
A request goes from LOOKING (the worker has been asked) to READY (spans are leased, or there are none). It is not
admitted while LOOKING, for at most `patience` seconds; an answer that comes later is given back.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from vllm.logger import init_logger

from vllm_redknot.reuse.control import OFF, parse_control
from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.messages import BlockIds, Gather, Load, Lookup, ReuseMetadata, ReuseReport
from vllm_redknot.reuse.permitted import Permitted, Repair
from vllm_redknot.reuse.plan import MIN_TOKENS, CleanSpan
from vllm_redknot.reuse.spans import Span
from vllm_redknot.reuse.tracked import MarkedDocument, Phase, Scheduled, Totals, Tracked

logger = init_logger("vllm.redknot")

NOTHING: Final = Repair(0, None)
PATIENCE: Final = 5.0
"""Seconds that a request waits for stored KV before its tokens are computed."""


class Tracker:
    """All requests of one engine.

    Args:
        permitted: which repair of moved spans requests get.
        capture: which marked documents are stored: "off", "first" (those that begin a prompt) or "marked" (all).
        min_tokens: shorter prompts and documents are not looked up or stored.
        patience: seconds to wait for the worker's answer.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        permitted: Permitted,
        capture: str,
        min_tokens: int,
        patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.permitted = permitted
        self.capture = capture
        self.min_tokens = min_tokens
        self.totals = Totals()
        self.is_on = True
        self._patience = patience
        self._clock = clock
        self._requests: dict[str, Tracked] = {}
        self._tickets = itertools.count(1)
        self._open: dict[int, Tracked] = {}
        self._next = ReuseMetadata()

    # What requests go through.

    def add(self, request: Scheduled, eligible: bool, refused: str = "") -> None:
        """A new request. Ineligible ones (adapters, images, prompt logprobs ...) are only counted.

        `refused`: why nothing is reused or stored for it although it may ask, which its response says.
        """
        tokens = request.prompt_token_ids
        extra = getattr(request.sampling_params, "extra_args", None)
        control, repair, problem = OFF, NOTHING, ""
        if eligible and tokens is not None and self.is_on:
            try:
                control = parse_control(extra, len(tokens))
                if refused and control.enabled:
                    control, problem = OFF, refused
                if control.enabled:
                    repair, problem = self.permitted.repair(control)
            except ReuseError as error:
                problem = str(error)
                logger.warning("REDKNOT: request %s is served without reuse: %s", request.request_id, problem)
        if problem and control.enabled:
            logger.warning_once("REDKNOT: requests ask for another repair than they get: %s", problem)
        tracked = Tracked(request, control, repair, problem=problem)
        self._requests[request.request_id] = tracked
        self.totals.requests += 1
        self.totals.prompt_tokens += request.num_prompt_tokens
        if control.enabled and request.num_prompt_tokens > self.min_tokens:
            self._look(tracked)

    def ready(self, request_id: str) -> bool:
        """Whether it is known what can be reused. Gives up waiting when patience ends."""
        tracked = self._requests.get(request_id)
        if tracked is None or tracked.phase is Phase.READY:
            return True
        if self._clock() < tracked.deadline:
            return False
        logger.warning("REDKNOT: request %s computes its prompt: stored KV took too long", request_id)
        self.totals.timeouts += 1
        tracked.faults += 1
        self._release(tracked)
        self._settle(tracked, (), ())
        return True

    def matched(self, request_id: str, position: int) -> int:
        """Tokens after `position`, the end of a request's prefix-cache hit, that can be loaded at once."""
        tracked = self._requests.get(request_id)
        if tracked is None:
            return 0
        tracked.prefix_tokens = position
        spans = self._chain(tracked, position)
        # Now: pages are hashed when they are allocated, before vLLM says that they are.
        blended = [max(span.begin, position) for span in tracked.blended if span.end > position]
        tracked.reused_from = position if spans else min(blended, default=None)
        return spans[-1].end - position if spans else 0

    def admitted(self, request_id: str, num_loaded: int) -> None:
        """The request has pages for its hit and, if `num_loaded`, for the span that `matched` told of."""
        tracked = self._requests.get(request_id)
        if tracked is None or not num_loaded:
            return
        spans = self._chain(tracked, tracked.prefix_tokens)
        assert spans[-1].end == tracked.prefix_tokens + num_loaded, "vLLM loads what it was offered"
        for span in spans:
            self._take(tracked, span)

    def next_skip(self, request: Scheduled) -> CleanSpan | None:
        """The span that a running request stands at, unless a step of it is still being computed."""
        tracked = self._requests.get(request.request_id)
        if tracked is None or not tracked.spans or request.num_in_flight_tokens:
            return None
        return self._span_at(tracked, request.num_computed_tokens)

    def skip(self, request: Scheduled, span: CleanSpan) -> None:
        """The request's pages up to the span's end are seen to: go on behind it."""
        tracked = self._requests[request.request_id]
        self._take(tracked, span)
        request.num_computed_tokens = span.end

    def decline(self, request: Scheduled, span: CleanSpan) -> None:
        """The span cannot be skipped: its tokens are computed."""
        tracked = self._requests[request.request_id]
        tracked.spans = [other for other in tracked.spans if other.begin >= span.end]
        tracked.faults += 1

    def chunk(self, request: Scheduled, position: int, num_tokens: int, running: bool) -> int:
        """Tokens to compute from `position` on, at most `num_tokens`: a chunk ends where the next span begins.

        0 for a running request that stands at a span and waits for its last step: the span is skipped after it.
        A span that is blended is in one chunk with others before it only where it is so with all its tokens.
        """
        tracked = self._requests.get(request.request_id)
        if tracked is None or not (tracked.spans or tracked.blended):
            return num_tokens
        if running and request.num_in_flight_tokens and self._span_at(tracked, position) is not None:
            return 0
        end = min(
            (span.begin for span in tracked.spans if span.begin > position), default=position + num_tokens
        )
        end = min(end, position + num_tokens)
        cut = (span.begin for span in tracked.blended if position < span.begin < end < span.end)
        return next(cut, end) - position

    def cacheable(self, request_id: str, num_tokens: int) -> int:
        """Of a request's first `num_tokens`, those whose pages may be found by the plain hash of their tokens."""
        tracked = self._requests.get(request_id)
        if tracked is None or tracked.reused_from is None:
            return num_tokens
        return min(num_tokens, tracked.reused_from)

    def preempted(self, request_id: str) -> None:
        """The request has lost its pages and starts over, at whatever the prefix cache still has."""
        tracked = self._requests.get(request_id)
        if tracked is None:
            return
        self._forget(tracked, tracked.documents)
        tracked.pending.clear()
        tracked.reused_from, tracked.segment_tokens, tracked.segments = None, 0, 0
        if tracked.ticket is not None:
            tracked.use(tracked.found)
        elif tracked.found or tracked.control.marks:
            self._look(tracked)

    def broken(self, request_id: str) -> None:
        """The request's pages could not be written: from now on it is served without reuse."""
        tracked = self._requests[request_id]
        tracked.control = OFF
        tracked.use(())
        tracked.faults += 1
        self._release(tracked)

    def finished(self, request_id: str) -> dict[str, Any]:
        """The request ends, however: what its response says."""
        tracked = self._requests.pop(request_id)
        self._forget(tracked, tracked.documents)
        self._release(tracked)
        self._count_tokens(tracked)
        self.totals.segments += tracked.segments
        self.totals.faults += tracked.faults
        return tracked.details()

    # What goes to the worker and comes back.

    def metadata(
        self, scheduled: Mapping[str, int], block_ids: Callable[[str], Sequence[list[int]]]
    ) -> ReuseMetadata:
        """The messages of a step that computes `scheduled` tokens of each request."""
        message, self._next = self._next, ReuseMetadata()
        for request_id, num_tokens in scheduled.items():
            tracked = self._requests.get(request_id)
            if tracked is None or not (tracked.pending or tracked.documents or tracked.ticket):
                continue
            blocks: BlockIds | None = None
            if tracked.pending or tracked.blended or tracked.documents:
                blocks = tuple(list(ids) for ids in block_ids(request_id))
            for span in tracked.pending:
                assert blocks is not None
                assert tracked.ticket is not None
                reader = tracked.request.num_computed_tokens
                message.loads.append(Load(request_id, tracked.ticket, span, reader, blocks))
            tracked.pending.clear()
            end = tracked.request.num_computed_tokens + num_tokens
            if blocks is not None:
                message.loads.extend(self._blends(tracked, end, blocks))
                message.gathers.extend(self._gathers(tracked, end, blocks))
            # Spans may also have passed unused, under a prefix-cache hit.
            tracked.spans = [span for span in tracked.spans if span.end > end]
            tracked.blended = [span for span in tracked.blended if span.end > end]
            if not (tracked.spans or tracked.blended):
                self._release(tracked, message)
        return message

    def receive(self, report: ReuseReport) -> None:
        """The worker's messages of a step."""
        self.totals.stored += report.stored
        self.totals.not_stored += report.failed
        for found in report.found:
            tracked = self._open.get(found.ticket)
            if tracked is not None:
                tracked.faults += found.faults
                tracked.unmarked = found.problem
                self._settle(tracked, found.spans, found.missing)
                if not found.spans:
                    self._release(tracked)

    def _look(self, tracked: Tracked) -> None:
        request, control = tracked.request, tracked.control
        assert request.prompt_token_ids is not None
        tracked.phase, tracked.spans, tracked.blended = Phase.LOOKING, [], []
        tracked.deadline = self._clock() + self._patience
        tracked.ticket = next(self._tickets)
        self._open[tracked.ticket] = tracked
        tokens = np.asarray(request.prompt_token_ids, dtype=np.int32)
        boundary = tracked.repair.boundary
        self._next.lookups.append(
            Lookup(tracked.ticket, tokens, control.spans, boundary, control.texts, control.reuse)
        )

    def _count_tokens(self, tracked: Tracked) -> None:
        """Prompt tokens by where their KV came from: of an aborted request, those it came to."""
        reached = min(tracked.request.num_prompt_tokens, tracked.request.num_computed_tokens)
        prefix = min(tracked.prefix_tokens, reached)
        segment = min(tracked.segment_tokens, reached - prefix)
        self.totals.prefix_tokens += prefix
        self.totals.segment_tokens += segment
        self.totals.recomputed_tokens += reached - prefix - segment

    def _release(self, tracked: Tracked, message: ReuseMetadata | None = None) -> None:
        if tracked.ticket is not None:
            (message or self._next).releases.append(tracked.ticket)
            del self._open[tracked.ticket]
            tracked.ticket = None

    def _settle(self, tracked: Tracked, spans: tuple[CleanSpan, ...], missing: tuple[Span, ...]) -> None:
        tracked.phase = Phase.READY
        tracked.use(spans)
        tracked.documents = [
            MarkedDocument(span, span.begin)
            for span in missing
            if span.end - span.begin >= max(self.min_tokens, MIN_TOKENS)
            and (self.capture == "marked" or (self.capture == "first" and span.begin == 0))
            and not any(span.begin < other.end and other.begin < span.end for other in tracked.blended)
        ]

    def _span_at(self, tracked: Tracked, position: int) -> CleanSpan | None:
        """What is left, from `position` on, of the span that holds it."""
        for span in tracked.spans:
            if span.begin <= position < span.end:
                return span.after(position)
        return None

    def _chain(self, tracked: Tracked, position: int) -> list[CleanSpan]:
        """The span that holds `position`, and those that follow it without a gap."""
        spans: list[CleanSpan] = []
        while (span := self._span_at(tracked, spans[-1].end if spans else position)) is not None:
            spans.append(span)
        return spans

    def _take(self, tracked: Tracked, span: CleanSpan) -> None:
        tracked.spans = [other for other in tracked.spans if other.begin >= span.end]
        tracked.pending.append(span)
        tracked.segment_tokens += span.end - span.begin
        tracked.segments += 1
        if tracked.reused_from is None:
            tracked.reused_from = span.begin
        # What comes from a segment is stored already, or would be a copy of a copy.
        kept = [d for d in tracked.documents if d.span.end <= span.begin or span.end <= d.span.begin]
        self._forget(tracked, [d for d in tracked.documents if d not in kept])

    def _blends(self, tracked: Tracked, end: int, blocks: BlockIds) -> list[Load]:
        """Loads of what the step up to `end` has of blended spans. Each is chosen from for itself."""
        start, blend = tracked.request.num_computed_tokens, tracked.repair.blend
        loads = []
        for span in tracked.blended:
            part = span.after(start).before(end)
            if part.begin >= part.end:
                continue
            assert blend is not None
            assert tracked.ticket is not None
            num_tokens = part.end - part.begin
            tracked.segment_tokens += num_tokens - blend.chosen(num_tokens)
            tracked.segments += part.end == span.end
            loads.append(Load(tracked.request.request_id, tracked.ticket, part, part.begin, blocks, blend))
        return loads

    def _gathers(self, tracked: Tracked, end: int, blocks: BlockIds) -> list[Gather]:
        """Reads of documents whose tokens are computed up to `end` with this step."""
        gathers = []
        for document in tracked.documents:
            start, stop = document.gathered, min(end, document.span.end)
            if stop <= start:
                continue
            tokens = None
            if stop == document.span.end:
                ids = tracked.request.prompt_token_ids
                assert ids is not None
                tokens = np.asarray(ids[document.span.begin : document.span.end], dtype=np.int32)
            gathers.append(Gather(tracked.request.request_id, document.span, start, stop, blocks, tokens))
            document.gathered = stop
        tracked.documents = [d for d in tracked.documents if d.gathered < d.span.end]
        return gathers

    def _forget(self, tracked: Tracked, documents: Sequence[MarkedDocument]) -> None:
        for document in documents:
            self._next.drops.append((tracked.request.request_id, document.span))
        tracked.documents = [d for d in tracked.documents if d not in documents]
