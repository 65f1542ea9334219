"""From what vLLM's client recorded of each request to the samples of a workload."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_redknot.benchmarking.errors import BenchmarkError
from vllm_redknot.benchmarking.workloads import Metric, Workload

Seconds = Annotated[float, Field(ge=0)]


class ClientResult(BaseModel):
    """What is read of the file that `vllm bench serve --save-result --save-detailed` writes; entries are by request."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    completed: int
    total_token_throughput: Annotated[float, Field(ge=0)]
    start_times: list[Seconds]
    ttfts: list[Seconds]
    itls: list[list[Seconds]]
    errors: list[str]


def parse_result(text: str) -> ClientResult:
    """Raises BenchmarkError where the client wrote something else than expected."""
    try:
        return ClientResult.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise BenchmarkError(
            f"the result of `vllm bench serve` is not as expected, {place}: {first['msg']}: this release knows the"
            " client of vLLM 0.32; report it with the output of `redknot doctor --json`"
        ) from error


def samples(workload: Workload, result: ClientResult) -> list[float]:
    """Samples in the metric's unit: one a request for the time to first token, else one a run.

    Raises:
        BenchmarkError: requests failed, or there was no moment at which all of them decoded.
    """
    if result.completed != workload.requests:
        failed = next((error for error in result.errors if error), "no reason given")
        last = (failed.strip().splitlines() or ["no reason given"])[-1]
        raise BenchmarkError(
            f"{workload.requests - result.completed} of {workload.requests} requests failed ({last:.200}):"
            " see the server's log in the output folder"
        )
    if workload.metric is Metric.TTFT:
        return list(result.ttfts)
    if workload.metric is Metric.THROUGHPUT:
        return [result.total_token_throughput]
    streams = [
        list(itertools.accumulate(gaps, initial=start + first))
        for start, first, gaps in zip(result.start_times, result.ttfts, result.itls, strict=True)
    ]
    gaps = list(decode_gaps(streams))
    if not gaps:
        raise BenchmarkError(
            f"{workload.described}: there was no moment at which all of them decoded: the KV cache holds fewer"
            " requests; give more --kv-bytes, or fewer or shorter requests"
        )
    return [1000 * statistics.median(gaps)]


def decode_gaps(streams: Sequence[Sequence[float]]) -> Iterator[float]:
    """Gaps between the pieces of answers while every request decodes; `streams` are times of pieces, by request."""
    begin, end = max(times[0] for times in streams), min(times[-1] for times in streams)
    for times in streams:
        for left, right in itertools.pairwise(times):
            if left >= begin and right <= end:
                yield right - left
