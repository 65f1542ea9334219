"""The KV-cache spec of a local KV head: its first tokens and a sliding window are kept, the rest is freed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vllm.utils.math_utils import cdiv
from vllm.v1.kv_cache_interface import KVCacheSpec, SlidingWindowSpec

from vllm_redknot.heads.profile import MAX_POSITIONS


@dataclass(frozen=True, kw_only=True)
class SinkWindowSpec(SlidingWindowSpec):
    """`SlidingWindowSpec` whose first `num_sink_tokens` tokens are never freed."""

    num_sink_tokens: int = 0

    @property
    def num_sink_blocks(self) -> int:
        """Blocks that hold sink tokens; they stay with the request until it ends."""
        return cdiv(self.num_sink_tokens, self.block_size)

    @property
    def num_retained_tokens(self) -> int:
        """Tokens below a request's next one that stay readable: all, else vLLM 0.33 hides the sinks' pages."""
        return MAX_POSITIONS

    def max_admission_blocks_per_request(self, max_in_flight_tokens: int, max_model_len: int) -> int:
        """Most blocks one request ever holds: window and in-flight tokens (the base class), and the sinks; or all."""
        window = super().max_admission_blocks_per_request(max_in_flight_tokens, max_model_len)
        return int(min(window + self.num_sink_blocks, cdiv(max_model_len, self.block_size)))

    @classmethod
    def merge(cls, specs: Sequence[KVCacheSpec]) -> SinkWindowSpec:
        """One spec that keeps whatever any of `specs` keeps. They may differ in window and sink only.

        Raises:
            AssertionError: A spec differs in more than that, which is what vLLM's callers expect to catch.
        """
        first = specs[0]
        assert isinstance(first, SinkWindowSpec)
        windows, sinks = [], []
        for spec in specs:
            assert isinstance(spec, SinkWindowSpec), "only local KV heads share a sink-window group"
            kept = {"sliding_window": first.sliding_window, "num_sink_tokens": first.num_sink_tokens}
            assert replace(spec, **kept) == first, (
                f"KV heads of one group must share a page format: {spec} and {first}"
            )
            windows.append(spec.sliding_window)
            sinks.append(spec.num_sink_tokens)
        most = {"sliding_window": max(windows), "num_sink_tokens": max(sinks)}
        return replace(first, **most)

    def is_uniform_with_collection(self, kv_cache_specs: Mapping[str, KVCacheSpec]) -> bool:
        """Whether all specs keep the same tokens."""
        return all(
            isinstance(spec, SinkWindowSpec)
            and spec.sliding_window == self.sliding_window
            and spec.num_sink_tokens == self.num_sink_tokens
            for spec in kv_cache_specs.values()
        )
