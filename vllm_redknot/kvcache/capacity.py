"""KV-cache bytes of a head profile, from arithmetic alone: no vLLM, no model.

A KV head that sees everything stores every token of the context. A local head stores at most its sinks, the window - 1
tokens before the next one, and the tokens in flight, because a block is freed only when no step that could read it is
pending. Storage is in blocks, and a window begins anywhere in one, so

    blocks(global) = ceil(context / block)
    blocks(local)  = min(ceil(min(window - 1 + in_flight, context) / block) + 1 + ceil(sink / block),
                         ceil(context / block))

summed over all (layer, KV head), times the bytes of a block. This is what segments need on their own; the engine adds
the padding and promotion of its groups (`kvcache.grouping`), a few percent. In tokens, without rounding, a local head
costs min(context, window - 1 + in_flight + sink).
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_redknot.heads.profile import HeadKind, HeadProfile, HeadVisibility


@dataclass(frozen=True)
class PageFormat:
    """One head's page: `block_size` tokens of K and V.

    Attributes:
        head_size: elements of a key, and of a value.
        element_bytes: bytes of one element, 2 for bf16 and fp16.
        block_size: tokens of a page.
    """

    head_size: int
    element_bytes: int
    block_size: int

    def __post_init__(self) -> None:
        for name in ("head_size", "element_bytes", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: K and V of `block_size` tokens of one head."""
        return 2 * self.head_size * self.element_bytes * self.block_size


@dataclass(frozen=True)
class Workload:
    """What requests look like.

    Attributes:
        context_tokens: length of a longest request, prompt and answer.
        in_flight_tokens: tokens scheduled and not yet settled: batches that run at once (2 with asynchronous
            scheduling) x tokens per batch (`max_num_batched_tokens`).
    """

    context_tokens: int
    in_flight_tokens: int

    def __post_init__(self) -> None:
        for name in ("context_tokens", "in_flight_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")


@dataclass(frozen=True)
class Capacity:
    """Bytes of a longest request's KV, over all heads of the profile (divide by the ranks that share them)."""

    request_bytes: int
    dense_request_bytes: int

    @property
    def kept_share(self) -> float:
        """Bytes relative to storing every token of every head."""
        return self.request_bytes / self.dense_request_bytes

    def concurrency(self, kv_cache_bytes: int) -> float:
        """Longest requests that fit into so many bytes at once."""
        return kv_cache_bytes / self.request_bytes


def blocks_kept(seen: HeadVisibility, page: PageFormat, workload: Workload) -> int:
    """Most pages a request ever holds for one head."""
    dense = _ceil_div(workload.context_tokens, page.block_size)
    if seen.window is None:
        return dense
    recent = min(seen.window - 1 + workload.in_flight_tokens, workload.context_tokens)
    return min(
        _ceil_div(recent, page.block_size) + 1 + _ceil_div(seen.sink, page.block_size),
        dense,
    )


def capacity(profile: HeadProfile, page: PageFormat, workload: Workload) -> Capacity:
    """KV bytes of a longest request with `profile`, and without: every head of every attention layer counts once.

    Raises:
        ValueError: The profile classes the logical heads of an MLA model, which share one cache.
    """
    if profile.kind is not HeadKind.KV:
        raise ValueError(f"the profile is for {profile.shape}: KV bytes follow from KV-head classes only")
    kept = sum(heads * blocks_kept(seen, page, workload) for seen, heads in profile.seen.items())
    dense = profile.seen.total() * _ceil_div(workload.context_tokens, page.block_size)
    return Capacity(kept * page.page_bytes, dense * page.page_bytes)


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
