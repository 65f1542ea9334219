"""Finding stored segments in a prompt: the longest runs of equal tokens, wherever they are, none overlapping."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.spans import Span
from vllm_redknot.reuse.windows import MIN_RUN, WINDOW, Hits, IntArray, Ints, WindowIndex

DEFAULT_MIN_TOKENS: Final = 64
MAX_CHAINS: Final = 16384
"""Places in the prompt and the store that are compared, those with most equal windows first."""


class Match(NamedTuple):
    """Tokens [begin, end) of a prompt are tokens [segment_begin, segment_begin + end - begin) of a stored segment."""

    begin: int
    end: int
    content: str
    segment_begin: int

    @property
    def num_tokens(self) -> int:
        return self.end - self.begin

    @property
    def shift(self) -> int:
        """Positions by which the segment's keys must be rotated: token t of it stands at t + shift."""
        return self.begin - self.segment_begin


@dataclass(frozen=True)
class _Indexed:
    content: str
    tokens: Ints
    min_end: int
    sinks: int


class _Run(NamedTuple):
    """Ordered by length, longest first, then place in the prompt, then name: what is chosen first."""

    negative_length: int
    begin: int
    content: str
    segment_begin: int
    slot: int

    @property
    def end(self) -> int:
        return self.begin - self.negative_length


class SegmentFinder:
    """Stored segments' tokens. Finds every common run of `min_tokens` (>= 31) or more, but for windows that very many
    segments share. The same segments and prompt give the same matches, in whatever order segments were added.
    """

    def __init__(self, min_tokens: int = DEFAULT_MIN_TOKENS) -> None:
        if min_tokens < MIN_RUN:
            raise ReuseError(f"the shortest run to look for is {min_tokens} tokens: give at least {MIN_RUN}")
        self.min_tokens = min_tokens
        self._windows = WindowIndex()
        self._slots: dict[str, int] = {}
        self._segments: dict[int, _Indexed] = {}
        self._next_slot = 0

    @property
    def contents(self) -> Set[str]:
        """Content ids of the segments that are findable."""
        return self._slots.keys()

    def add(self, content: str, tokens: Sequence[int] | IntArray, min_end: int = 1, sinks: int = 0) -> None:
        """Make a segment findable.

        A run of it must end at token `min_end` or later, and one that starts below position `sinks` of a prompt must
        not start later in the segment than there: what `SegmentFormat.min_end` and `.sinks` say of a format.
        """
        if content in self._slots:
            return
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        ids = np.asarray(tokens, dtype=np.int64)
        self._slots[content] = slot
        self._segments[slot] = _Indexed(content, ids, min_end, sinks)
        self._windows.add(slot, content, ids)

    def discard(self, content: str) -> None:
        """Forget a segment, if it is known."""
        slot = self._slots.pop(content, None)
        if slot is not None:
            del self._segments[slot]
            self._windows.discard(slot)

    def find(
        self, tokens: Sequence[int] | IntArray, spans: Iterable[Span] | None = None
    ) -> tuple[Match, ...]:
        """Disjoint runs of stored tokens, in the order of the prompt; with `spans`, within these alone.

        The longest run is chosen first, then the longest of what is left of the others, and so on; of equal ones that
        which comes first in the prompt, then by name. Time is linear in the prompt.
        """
        prompt = np.asarray(tokens, dtype=np.int64)
        taken = [] if spans is None else _outside(spans, len(prompt))
        heap = list(self._pieces(self._runs(prompt), taken))
        heapq.heapify(heap)
        chosen: list[Match] = []
        while heap:
            run = heapq.heappop(heap)
            free = list(self._pieces([run], taken))
            if free != [run]:
                for piece in free:
                    heapq.heappush(heap, piece)
                continue
            insort(taken, Span(run.begin, run.end))
            chosen.append(Match(run.begin, run.end, run.content, run.segment_begin))
        return tuple(sorted(chosen))

    def _runs(self, prompt: Ints) -> Iterator[_Run]:
        """Maximal runs of equal tokens around each chain of equal windows, each once."""
        seen: set[tuple[int, int, int]] = set()
        for first, slot, offset in _chains(self._windows.hits(prompt)):
            segment = self._segments[slot]
            shift = first - offset
            low, high = max(0, shift), min(len(prompt), shift + len(segment.tokens))
            unequal = np.flatnonzero(prompt[low:high] != segment.tokens[low - shift : high - shift])
            after = int(np.searchsorted(unequal, first - low))
            begin = low + (int(unequal[after - 1]) + 1 if after else 0)
            end = low + int(unequal[after]) if after < len(unequal) else high
            if end > begin and (slot, shift, begin) not in seen:
                seen.add((slot, shift, begin))
                yield _Run(begin - end, begin, segment.content, begin - shift, slot)

    def _pieces(self, runs: Iterable[_Run], taken: Sequence[Span]) -> Iterator[_Run]:
        """What is left of runs beside the disjoint, ordered spans `taken`, where it is long enough and usable."""
        for run in runs:
            segment = self._segments[run.slot]
            begin, end = run.begin, run.end
            at = bisect_left(taken, (begin, begin))
            if at and taken[at - 1].end > begin:
                at -= 1
            while begin < end:
                next_begin = taken[at].begin if at < len(taken) else end
                piece_end = min(end, next_begin)
                start = begin
                if segment.sinks > start and run.segment_begin > run.begin:
                    start = segment.sinks
                segment_begin = run.segment_begin + start - run.begin
                long_enough = piece_end - start >= self.min_tokens
                if long_enough and segment_begin + piece_end - start >= segment.min_end:
                    yield _Run(start - piece_end, start, run.content, segment_begin, run.slot)
                if at >= len(taken) or next_begin >= end:
                    break
                begin, at = max(begin, taken[at].end), at + 1


def _outside(spans: Iterable[Span], num_tokens: int) -> list[Span]:
    """The gaps between disjoint, ordered spans."""
    edges = [0, *(edge for span in spans for edge in span), num_tokens]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [Span(begin, end) for begin, end in pairs if end > begin]


def _chains(hits: Hits) -> list[tuple[int, int, int]]:
    """(prompt position, slot, segment offset) of the first hit of each series of adjacent windows, longest first."""
    prompt, slot, offset = hits
    if not len(prompt):
        return []
    order = np.lexsort((prompt, prompt - offset, slot))
    prompt, slot, offset = prompt[order], slot[order], offset[order]
    follows = (np.diff(slot) == 0) & (np.diff(prompt) == WINDOW) & (np.diff(offset) == WINDOW)
    starts = np.flatnonzero(np.concatenate(([True], ~follows)))
    lengths = np.diff(np.append(starts, len(prompt)))
    starts = starts[np.lexsort((offset[starts], prompt[starts], -lengths))][:MAX_CHAINS]
    return list(zip(prompt[starts].tolist(), slot[starts].tolist(), offset[starts].tolist(), strict=True))
