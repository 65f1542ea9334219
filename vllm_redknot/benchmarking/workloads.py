"""What is asked of a server, and which of its answers is the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal


class Metric(StrEnum):
    """The figure a workload gives."""

    TTFT = "ttft"
    ITL = "itl"
    THROUGHPUT = "throughput"


@dataclass(frozen=True)
class Quantity:
    """A metric as the result document names it."""

    name: str
    unit: str
    better: Literal["higher", "lower"]


QUANTITIES: Final = {
    Metric.TTFT: Quantity("time to first token", "s", "lower"),
    Metric.ITL: Quantity("inter-token latency", "ms", "lower"),
    Metric.THROUGHPUT: Quantity("throughput", "tokens/s", "higher"),
}
TTFT_REQUESTS: Final = 3
GRANULARITY: Final = 16
"""Default prompt lengths are multiples of it."""


@dataclass(frozen=True)
class Workload:
    """`requests` prompts of `prompt_tokens` tokens, each answered with `answer_tokens`.

    For the time to first token they come one after the other, else all at once.
    """

    metric: Metric
    requests: int
    prompt_tokens: int
    answer_tokens: int

    @property
    def key(self) -> str:
        """Tells the workloads of a plan apart; safe in a file's name."""
        return f"{self.metric.value}-{self.requests}x{self.prompt_tokens}"

    @property
    def at_once(self) -> int:
        """Requests the client keeps open."""
        return 1 if self.metric is Metric.TTFT else self.requests

    @property
    def described(self) -> str:
        """For people."""
        if self.metric is Metric.TTFT:
            return f"prompt of {self.prompt_tokens} tokens, alone"
        return f"{self.requests} x {self.prompt_tokens} tokens at once"


@dataclass(frozen=True)
class Crowd:
    """So many requests of so many prompt tokens."""

    requests: int
    prompt_tokens: int


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; None is the default for the context."""

    ttft: Sequence[int] | None = None
    short: Crowd | None = None
    long: Crowd | None = None
    throughput: Crowd | None = None


def workloads(
    wanted: Wanted, context: int, batched_tokens: int, quick: bool, metrics: Sequence[Metric]
) -> tuple[Workload, ...]:
    """The workloads of one server that takes requests of `context` tokens, in steps of `batched_tokens`.

    Raises:
        ValueError: a workload does not fit the context.
    """
    lengths = wanted.ttft or [
        _share(context, part) for part in ((1 / 16, 1 / 4) if quick else (1 / 16, 1 / 4, 15 / 16))
    ]
    short = wanted.short or (Crowd(8, min(64, context // 4)) if quick else Crowd(32, min(64, context // 4)))
    long = wanted.long or (Crowd(2, _share(context, 1 / 4)) if quick else Crowd(8, _share(context, 3 / 4)))
    many = wanted.throughput or (
        Crowd(4, _share(context, 1 / 8)) if quick else Crowd(32, _share(context, 1 / 2))
    )
    chosen = [Workload(Metric.TTFT, TTFT_REQUESTS, length, 1) for length in dict.fromkeys(lengths)]
    chosen += [
        Workload(Metric.ITL, crowd.requests, crowd.prompt_tokens, _answer(crowd, batched_tokens, quick))
        for crowd in dict.fromkeys((short, long))
    ]
    chosen.append(Workload(Metric.THROUGHPUT, many.requests, many.prompt_tokens, 8 if quick else 16))
    kept = tuple(workload for workload in chosen if workload.metric in metrics)
    for workload in kept:
        if workload.prompt_tokens + workload.answer_tokens > context:
            raise ValueError(
                f"{workload.described} with answers of {workload.answer_tokens} tokens do not fit a context of"
                f" {context}: give shorter prompts, fewer requests, or a longer --max-model-len"
            )
    return kept


def _share(context: int, part: float) -> int:
    return max(1, int(context * part) // GRANULARITY * GRANULARITY)


def _answer(crowd: Crowd, batched_tokens: int, quick: bool) -> int:
    """Long enough that the first request still decodes when the prompt of the last has been read."""
    prefill_steps = -(-crowd.requests * crowd.prompt_tokens // batched_tokens)
    return prefill_steps + crowd.requests + (16 if quick else 32)
