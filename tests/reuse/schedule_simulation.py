"""vLLM's scheduler with spans, and a worker that computes nothing: it marks pages and checks what queries would read.

Every token slot holds a mark that says what KV it is: computed with an exact history (and how many tokens of that
skipped rows), computed by a certain request, or a token of a segment. Steps are executed in order; with `ahead` > 1
their results reach the scheduler later, as with asynchronous scheduling. The worker knows of blocks only what vLLM
tells workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from vllm_redknot.kvcache.spec import SinkWindowSpec
from vllm_redknot.reuse.messages import Found, Load, ReuseReport
from vllm_redknot.reuse.plan import CleanSpan
from vllm_redknot.reuse.span_scheduler import AsyncSpanScheduler, SpanScheduler
from vllm_redknot.rows.block_hashes import RowBlockHasher
from vllm_redknot.rows.requests import OFF_KEY, skips_rows
from vllm_redknot.rows.schedule import RowSchedule

Mark = tuple[Any, ...]
Limits = tuple[int, int] | None


class Simulation:
    """One engine.

    Args:
        folder: a small checkpoint; its configuration is read.
        heads: (window, sink) of one head per KV-cache group, or None for a global one.
        page: tokens of a page.
        blocks: of the pool.
        chunk: most tokens of a step.
        ahead: steps that are scheduled before the first one's result is known.
        spans: what a lookup of a prompt finds.
        prefix_caching: whether pages are found by their hashes.
        rows: what prompt tokens skip; None: nothing.
        marks_blocks: whether hashes tell what skipped, as they must.
    """

    def __init__(
        self,
        folder: Path,
        heads: list[Limits],
        page: int,
        blocks: int,
        chunk: int,
        ahead: int,
        spans: Callable[[list[int]], tuple[CleanSpan, ...]],
        prefix_caching: bool = True,
        rows: RowSchedule | None = None,
        marks_blocks: bool = True,
    ) -> None:
        stated = "off" if rows is None else rows.to_section()
        reuse = {"heads": "all-global", "reuse": "force", "store": str(folder)}
        config = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            attention_backend="REDKNOT",
            additional_config={"redknot": {**reuse, "rows": stated}},
            max_model_len=1024,
            max_num_batched_tokens=chunk,
            max_num_seqs=8,
            block_size=page,
            enforce_eager=True,
            enable_prefix_caching=prefix_caching,
        ).create_engine_config()
        config.scheduler_config.async_scheduling = ahead > 1
        config.cache_config.num_gpu_blocks = blocks
        groups = [KVCacheGroupSpec([f"layer.{i}"], _spec(limits, page)) for i, limits in enumerate(heads)]
        init_none_hash(sha256)
        self._hasher: Any = get_request_block_hasher(page, sha256)
        if rows is not None and marks_blocks:
            self._hasher = RowBlockHasher(self._hasher, rows, page)
        kind = AsyncSpanScheduler if ahead > 1 else SpanScheduler
        self.scheduler = kind(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(blocks, [], groups),
            structured_output_manager=StructuredOutputManager(config),
            block_size=page,
            hash_block_size=page,
        )
        self._heads, self._page, self._ahead, self._spans, self._rows = heads, page, ahead, spans, rows
        self._pages: list[dict[int, list[Mark | None]]] = [{} for _ in heads]
        self._tables: dict[str, list[list[int]]] = {}
        self._tokens: dict[str, list[int]] = {}
        self._skippable: dict[str, tuple[int, int]] = {}
        self._reused: dict[str, dict[int, Mark]] = {}  # of the current run of a request
        self._runs: dict[str, int] = {}
        self._tickets: dict[int, tuple[CleanSpan, ...]] = {}
        self._results: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self.loads: list[Load] = []
        self.steps = 0
        self.break_loads = False

    def add(self, request_id: str, prompt: list[int], max_tokens: int = 4, rows_off: bool = False) -> Request:
        """A new request."""
        sampling = SamplingParams(
            max_tokens=max_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
            extra_args={OFF_KEY: "off"} if rows_off else None,
        )
        if self._rows is not None and skips_rows(sampling):
            self._skippable[request_id] = self._rows.skippable(len(prompt))
        request = Request(request_id, list(prompt), sampling, None, block_hasher=self._hasher)
        self._tokens[request_id] = list(prompt)
        self.scheduler.add_request(request)
        return request

    def abort(self, request_id: str) -> None:
        """The client is gone."""
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def run(self, steps: int = 10_000) -> None:
        """Step until nothing is left to do, or so many times."""
        for _ in range(steps):
            if not self.scheduler.has_requests() and not self._results:
                return
            self.step()
        assert steps < 10_000, "requests are stuck"

    def step(self) -> None:
        """Schedule and execute one step; hand the oldest result to the scheduler where it is due."""
        self.steps += 1
        output = self.scheduler.schedule()
        self._results.append((output, self._execute(output)))
        while len(self._results) >= self._ahead or (self._results and not self.scheduler.has_requests()):
            self.scheduler.update_from_output(*self._results.popleft())

    def assert_empty(self) -> None:
        """Every page is free, nothing is tracked."""
        pool = self.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
        tracker = self.scheduler.connector.tracker
        assert not tracker._requests
        assert not tracker._open
        assert not self._tickets
        assert not self.scheduler._told

    def _execute(self, output: Any) -> ModelRunnerOutput:
        message = output.kv_connector_metadata
        report = ReuseReport()
        for lookup in message.lookups:
            spans = self._spans(lookup.tokens.tolist())
            if spans:
                self._tickets[lookup.ticket] = spans
            report.found.append(Found(lookup.ticket, spans, (), 0))
        self._update(output)
        assert output.has_sync_kv_loads == bool(message.loads)
        for load in message.loads:
            assert any(load.span.content == span.content for span in self._tickets[load.ticket])
            if self.break_loads:
                report.broken.append(load.request_id)
            else:
                self._load(load)
        sampled = {}
        for request_id, count in output.num_scheduled_tokens.items():
            sampled[request_id] = self._compute(
                request_id, self._positions[request_id], count, request_id in report.broken
            )
        for ticket in message.releases:
            self._tickets.pop(ticket, None)
        names = list(sampled)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[sampled[name] for name in names],
            kv_connector_output=KVConnectorOutput(kv_connector_worker_meta=report),
        )

    def _update(self, output: Any) -> None:
        """What a worker learns of requests."""
        self._positions = {}
        for new in output.scheduled_new_reqs:
            self._start(new.req_id, new.block_ids)
            self._positions[new.req_id] = new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        for request_id, blocks, position in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if request_id in cached.resumed_req_ids:
                self._start(request_id, blocks)
            elif blocks is not None:
                for table, more in zip(self._tables[request_id], blocks, strict=True):
                    table.extend(more)
            self._positions[request_id] = position

    def _start(self, request_id: str, blocks: Any) -> None:
        self._tables[request_id] = [list(group) for group in blocks]
        self._reused[request_id] = {}
        self._runs[request_id] = self._runs.get(request_id, 0) + 1

    def _load(self, load: Load) -> None:
        self.loads.append(load)
        span = load.span
        assert load.reader == self._positions[load.request_id] >= span.end
        for position in range(span.begin, span.end):
            mark = ("segment", span.content, span.offset + position - span.begin, position)
            self._reused[load.request_id][position] = mark
            for group, limits in enumerate(self._heads):
                if _sees(limits, load.reader, position):
                    self._write(group, load.blocks[group], position, mark)

    def _compute(self, request_id: str, position: int, count: int, is_broken: bool) -> list[int]:
        tokens, tables = self._tokens[request_id], self._tables[request_id]
        end = position + count
        assert end <= len(tokens)
        for group, table in enumerate(tables):
            for own in range(position, end):
                self._write(group, table, own, self._expected(request_id, own))
        if not is_broken:
            for group, limits in enumerate(self._heads):
                for query in {position, position + 1, end - 1} & set(range(position, end)):
                    for key in range(query + 1):
                        if _sees(limits, query, key):
                            self._check(request_id, group, query, key)
        if end < len(tokens):
            return []
        # An answer that depends on nothing but its place, so that a request that starts over repeats it.
        tokens.append((7 * end + 1) % 500)
        return [tokens[-1]]

    def _expected(self, request_id: str, position: int) -> Mark:
        reused = self._reused[request_id]
        if position in reused:
            return reused[position]
        if reused and position > min(reused):
            return ("own", request_id, self._runs[request_id], position)
        start, stop = self._skippable.get(request_id, (0, 0))
        skipped = max(0, min(position + 1, stop) - start)
        return ("exact", hash(tuple(self._tokens[request_id][: position + 1])), skipped)

    def _write(self, group: int, table: list[int], position: int, mark: Mark) -> None:
        block = table[position // self._page]
        assert block != 0, f"position {position} has no page in group {group}"
        self._pages[group].setdefault(block, [None] * self._page)[position % self._page] = mark

    def _check(self, request_id: str, group: int, query: int, key: int) -> None:
        block = self._tables[request_id][group][key // self._page]
        page = self._pages[group].get(block, [None] * self._page)
        assert page[key % self._page] == self._expected(request_id, key), (
            f"{request_id}: query {query} reads key {key} of group {group} from block {block}"
        )


def _spec(limits: Limits, page: int) -> Any:
    common: dict[str, Any] = {
        "block_size": page,
        "num_kv_heads": 1,
        "head_size": 64,
        "dtype": torch.float32,
    }
    if limits is None:
        return FullAttentionSpec(**common)
    return SinkWindowSpec(**common, sliding_window=limits[0], num_sink_tokens=limits[1])


def _sees(limits: Limits, query: int, key: int) -> bool:
    return key <= query and (limits is None or query - key < limits[0] or key < limits[1])
