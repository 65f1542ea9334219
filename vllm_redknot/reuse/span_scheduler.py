"""vLLM's schedulers, with stored spans skipped: prefill goes in order, and a span advances a request without a step.

Two places of vLLM's scheduler are enough. Before it schedules, requests that stand at a span are moved behind it. And
`_reserve_prefill_lookahead`, which every chunk passes, ends chunks where the next span begins. The pages come from
vLLM's own allocation; the connector fills them before the forward pass.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from vllm_redknot.reuse.blocks import make_room
from vllm_redknot.reuse.tracker import Tracker


class SpanScheduling:
    """Mixin before a vLLM scheduler class."""

    kv_cache_manager: Any
    connector: Any
    running: list[Any]
    requests: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tracker: Tracker = self.connector.tracker
        # Request -> blocks per group that its worker knows of, where `make_room` has changed the lists since.
        self._told: dict[str, list[int]] = {}
        coordinator = self.kv_cache_manager.coordinator
        hash_blocks = coordinator.cache_blocks

        def cache_blocks(request: Any, num_computed_tokens: int) -> None:
            # The plain hash of a prompt's tokens promises KV that was computed from this very prompt.
            hash_blocks(request, self._tracker.cacheable(request.request_id, num_computed_tokens))

        coordinator.cache_blocks = cache_blocks

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Skip spans, then schedule."""
        for request in self.running:
            self._skip_spans(request)
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self._tell_blocks(output.scheduled_cached_reqs)
        if output.kv_connector_metadata.loads:
            # Else workers load after the forward pass.
            output.has_sync_kv_loads = True
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Start requests over whose pages could not be written: what they computed is dropped."""
        transferred = model_runner_output.kv_connector_output
        report = transferred.kv_connector_worker_meta if transferred is not None else None
        for request_id in report.broken if report is not None else ():
            request = self.requests.get(request_id)
            if request is not None and request.status == RequestStatus.RUNNING:
                self._tracker.broken(request_id)
                self.running.remove(request)
                self._preempt_request(request, time.monotonic(), drop_stale_output=True)
        return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]

    def _skip_spans(self, request: Any) -> None:
        while (span := self._tracker.next_skip(request)) is not None:
            coordinator = self.kv_cache_manager.coordinator
            known = [len(m.req_to_blocks[request.request_id]) for m in coordinator.single_type_managers]
            if not make_room(coordinator, request.request_id, span.end):
                self._tracker.decline(request, span)
                return
            self._told.setdefault(request.request_id, known)
            self._tracker.skip(request, span)
            if request.prefill_stats is not None:
                skipped = span.end - span.begin
                request.prefill_stats.num_external_cached_tokens += skipped
                request.prefill_stats.num_cached_tokens += skipped
                request.prefill_stats.num_computed_tokens -= skipped

    def _tell_blocks(self, cached: Any) -> None:
        """Workers append what a step allocates: give them what a skip has put before it."""
        for index, request_id in enumerate(cached.req_ids):
            known = self._told.pop(request_id, None)
            if known is not None:
                ids = self.kv_cache_manager.get_block_ids(request_id)
                cached.new_block_ids[index] = tuple(
                    group[count:] for group, count in zip(ids, known, strict=True)
                )

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        tokens = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)  # type: ignore[misc]
        is_running = request.status == RequestStatus.RUNNING
        return self._tracker.chunk(request, num_computed_tokens, tokens, is_running)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]
        self._told.pop(request.request_id, None)
        self._tracker.preempted(request.request_id)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._told.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]


class SpanScheduler(SpanScheduling, Scheduler):
    """For synchronous scheduling."""


class AsyncSpanScheduler(SpanScheduling, AsyncScheduler):
    """For asynchronous scheduling: a request waits at a span until its last step has ended."""
