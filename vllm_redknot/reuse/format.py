"""Which tokens a segment keeps of which KV head, and where their rows lie: what any later position can need.

A segment of n tokens is the KV of these tokens computed alone, at positions 0 to n - 1. Placed at position p of a
prompt, a token t of it is key p + t. Queries that come after it see, of a local head, its last `window` tokens and,
where p < sink, its first ones; so that is all a local head keeps. Global heads keep every token.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Final

from vllm_redknot.heads.profile import MAX_HEADS, MAX_LAYERS, MAX_POSITIONS
from vllm_redknot.reuse.faults import ReuseError

ELEMENT_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
MAX_TOKENS: Final = 2**24
"""Of one segment."""
MAX_HEAD_SIZE: Final = 4096


@dataclass(frozen=True)
class KeptTokens:
    """The tokens a head keeps: [0, first) and [tail_begin, n). Where nothing is dropped, first and tail_begin are 0."""

    first: int
    tail_begin: int


@dataclass(frozen=True)
class SegmentFormat:
    """What one rank stores per segment. L attention layers, H KV heads of the rank.

    Attributes:
        layer_ids: [L] model layers, increasing.
        head_size: D, of keys and of values.
        dtype: of the stored KV: bfloat16, float16 or float32.
        window: [L][H] tokens; None for a head that sees everything.
        sink: [L][H] tokens; 0 for a head that sees everything.
        slack: tokens that local heads keep beyond their window, so that a run may end that much before the segment.

    Raises ReuseError where a number is out of range.
    """

    layer_ids: tuple[int, ...]
    head_size: int
    dtype: str
    window: tuple[tuple[int | None, ...], ...]
    sink: tuple[tuple[int, ...], ...]
    slack: int = 0

    def __post_init__(self) -> None:
        layers, heads = len(self.layer_ids), self.num_kv_heads
        if not (1 <= layers <= MAX_LAYERS and 1 <= heads <= MAX_HEADS):
            raise ReuseError(
                f"a segment format of {layers} layers x {heads} KV heads: give 1 to {MAX_LAYERS} of both"
            )
        if self.layer_ids[0] < 0 or any(b <= a for a, b in itertools.pairwise(self.layer_ids)):
            raise ReuseError(f"layer_ids {self.layer_ids} must be increasing layer numbers")
        for name, matrix in (("window", self.window), ("sink", self.sink)):
            if len(matrix) != layers or any(len(row) != heads for row in matrix):
                raise ReuseError(f"{name} is not a matrix of {layers} layers x {heads} KV heads")
        if any(w is not None and not 1 <= w <= MAX_POSITIONS for row in self.window for w in row):
            raise ReuseError(f"window {self.window}: give 1 to {MAX_POSITIONS} tokens, or None")
        if any(not 0 <= s <= MAX_POSITIONS for row in self.sink for s in row):
            raise ReuseError(f"sink {self.sink}: give 0 to {MAX_POSITIONS} tokens")
        if not 1 <= self.head_size <= MAX_HEAD_SIZE or not 0 <= self.slack <= MAX_POSITIONS:
            raise ReuseError(f"head_size {self.head_size}, slack {self.slack}: out of range")
        if self.dtype not in ELEMENT_BYTES:
            raise ReuseError(f"KV dtype {self.dtype!r}: give one of {', '.join(ELEMENT_BYTES)}")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SegmentFormat:
        """The inverse of `to_json`. Raises ReuseError, TypeError, KeyError or ValueError for anything else."""
        return cls(
            layer_ids=tuple(_integer(i) for i in document["layer_ids"]),
            head_size=_integer(document["head_size"]),
            dtype=str(document["dtype"]),
            window=tuple(
                tuple(None if w is None else _integer(w) for w in row) for row in document["window"]
            ),
            sink=tuple(tuple(_integer(s) for s in row) for row in document["sink"]),
            slack=_integer(document["slack"]),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def num_kv_heads(self) -> int:
        return len(self.window[0]) if self.window else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one head: K and V."""
        return 2 * self.head_size * ELEMENT_BYTES[self.dtype]

    def kept(self, row: int, head: int, num_tokens: int) -> KeptTokens:
        """What a head of the `row`-th attention layer keeps of a segment of `num_tokens`."""
        return _kept(self.window[row][head], self.sink[row][head], self.slack, num_tokens)

    def row_starts(self, num_tokens: int) -> tuple[int, ...]:
        """[L * H + 1]: rows of (layer row, head) are starts[row * H + head] to starts[row * H + head + 1]."""
        return _row_starts(self, num_tokens)

    def num_rows(self, num_tokens: int) -> int:
        return self.row_starts(num_tokens)[-1]

    def kv_bytes(self, num_tokens: int) -> int:
        """Bytes of all K and V of a segment."""
        return self.num_rows(num_tokens) * self.row_bytes

    def min_end(self, num_tokens: int) -> int:
        """The least e for which a run that ends at token e of a segment can be placed: see `covers`."""
        dropped = any(kept.tail_begin for _, kept in self._heads(num_tokens))
        return max(1, num_tokens - self.slack - 1) if dropped else 1

    def sinks(self, num_tokens: int) -> int:
        """The position from which on no sink of a head that drops tokens reaches: see `covers`."""
        return max((sink for sink, kept in self._heads(num_tokens) if kept.tail_begin), default=0)

    def _heads(self, num_tokens: int) -> Iterator[tuple[int, KeptTokens]]:
        for row, sinks in enumerate(self.sink):
            for head, sink in enumerate(sinks):
                yield sink, self.kept(row, head, num_tokens)

    def covers(self, num_tokens: int, begin: int, end: int, position: int) -> bool:
        """Whether tokens [begin, end) of a segment can stand at `position`: all that later queries see is kept.

        A query at position + end - begin or later sees, of a local head, tokens from end - window + 1 on, and those
        whose position is below the sink.
        """
        for row in range(len(self.layer_ids)):
            for head in range(self.num_kv_heads):
                window, kept = self.window[row][head], self.kept(row, head, num_tokens)
                if window is None or not kept.tail_begin:
                    continue
                if max(begin, end - window + 1) < min(end, kept.tail_begin) and end > kept.first:
                    return False
                sink_end = min(end, begin + max(0, self.sink[row][head] - position))
                if sink_end > max(begin, kept.first) and begin < kept.tail_begin:
                    return False
        return True


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r:.60} is no integer")
    return value


def _kept(window: int | None, sink: int, slack: int, num_tokens: int) -> KeptTokens:
    if window is None or num_tokens - window - slack <= sink:
        return KeptTokens(0, 0)
    return KeptTokens(sink, num_tokens - window - slack)


@lru_cache(maxsize=4096)
def _row_starts(layout: SegmentFormat, num_tokens: int) -> tuple[int, ...]:
    if not 1 <= num_tokens <= MAX_TOKENS:
        raise ReuseError(f"a segment of {num_tokens} tokens: give 1 to {MAX_TOKENS}")
    rows = [
        kept.first + num_tokens - kept.tail_begin
        for windows, sinks in zip(layout.window, layout.sink, strict=True)
        for kept in (
            _kept(window, sink, layout.slack, num_tokens) for window, sink in zip(windows, sinks, strict=True)
        )
    ]
    return (0, *itertools.accumulate(rows))
