"""An index of fixed-size token windows of stored segments, looked up for every position of a prompt at once.

Segments are indexed at every 16th token, prompts hashed at every position, so that any common run of 31 tokens shares
a window. A hit is a hint: the finder compares tokens.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

WINDOW: Final = 16
"""Tokens; a power of two."""
MIN_RUN: Final = 2 * WINDOW - 1
"""Tokens of the shortest run that is sure to hold an indexed window."""
MAX_CANDIDATES: Final = 8
"""Places in stored segments looked at for one window of a prompt, such as one of a template shared by all documents."""
MAX_REPEATS: Final = 64
"""Places in a prompt at which one and the same window is looked up."""
BASE: Final = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplying by it loses nothing modulo 2^64."""

Ints = npt.NDArray[np.int64]
IntArray = npt.NDArray[np.integer[Any]]
Hashes = npt.NDArray[np.uint64]


class Hits(NamedTuple):
    """Equal windows: `prompt` and `offset` are their positions in the prompt and in segment `slot`. int64 [k] each."""

    prompt: Ints
    slot: Ints
    offset: Ints


def window_hashes(tokens: Ints) -> Hashes:
    """uint64 [n - 15]: a polynomial hash modulo 2^64 of every window; empty for fewer than 16 tokens.

    The hash of 2k tokens is that of the first k times BASE^k plus that of the last k.
    """
    if len(tokens) < WINDOW:
        return np.empty(0, np.uint64)
    # Token ids are small and dense: spread them first (the finaliser of splitmix64).
    hashes = tokens.astype(np.uint64) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    hashes ^= hashes >> np.uint64(31)
    power, length = BASE, 1
    while length < WINDOW:
        hashes = hashes[:-length] * power + hashes[length:]
        power, length = np.multiply(power, power, dtype=np.uint64), 2 * length
    return hashes


class WindowIndex:
    """Windows of segments, which go by slot numbers and are ranked by their names."""

    def __init__(self) -> None:
        self._hashes: Hashes = np.empty(0, np.uint64)  # sorted
        self._slots: Ints = np.empty(0, np.int64)
        self._offsets: Ints = np.empty(0, np.int64)
        self._names: dict[int, str] = {}
        self._new: list[tuple[Hashes, int]] = []
        self._dropped: set[int] = set()

    def __len__(self) -> int:
        self._settle()
        return len(self._hashes)

    def add(self, slot: int, name: str, tokens: Ints) -> None:
        """Index a segment. A slot number is used once."""
        self._names[slot] = name
        self._new.append((window_hashes(tokens)[::WINDOW], slot))

    def discard(self, slot: int) -> None:
        """Forget a segment."""
        del self._names[slot]
        self._dropped.add(slot)

    def hits(self, tokens: Ints) -> Hits:
        """Windows of a prompt that stored segments have, too common ones thinned out, whatever order they came in."""
        self._settle()
        hashes = window_hashes(tokens)
        low = np.searchsorted(self._hashes, hashes)
        inside = low < len(self._hashes)
        found = np.flatnonzero(inside)[self._hashes[low[inside]] == hashes[inside]]
        found = found[_rank_among_equals(hashes[found]) < MAX_REPEATS]
        low = low[found]
        count = np.searchsorted(self._hashes, hashes[found], side="right") - low
        chosen: list[Ints] = []
        at: list[Ints] = []
        few = count <= MAX_CANDIDATES
        step = np.arange(int(count[few].sum())) - np.repeat(np.cumsum(count[few]) - count[few], count[few])
        chosen.append(np.repeat(low[few], count[few]) + step)
        at.append(np.repeat(found[few], count[few]))
        for begin in np.unique(low[~few]):
            same = found[low == begin]
            first = self._first(int(begin), int(count[low == begin][0]))
            chosen.append(np.tile(first, len(same)))
            at.append(np.repeat(same, len(first)))
        entries = np.concatenate(chosen)
        return Hits(np.concatenate(at), self._slots[entries], self._offsets[entries])

    def _first(self, begin: int, count: int) -> Ints:
        """The entries of an overfull hash to look at: nearest to a segment's start, then by name."""
        names, slots, offsets = self._names, self._slots, self._offsets
        entries = range(begin, begin + count)
        ranked = sorted(entries, key=lambda entry: (int(offsets[entry]), names[int(slots[entry])]))
        return np.asarray(ranked[:MAX_CANDIDATES], np.int64)

    def _settle(self) -> None:
        """Take in what was added and discarded since the last look."""
        if self._dropped:
            keep = ~np.isin(self._slots, np.fromiter(self._dropped, np.int64))
            self._hashes, self._slots = self._hashes[keep], self._slots[keep]
            self._offsets = self._offsets[keep]
            self._new = [(hashes, slot) for hashes, slot in self._new if slot not in self._dropped]
            self._dropped.clear()
        if not self._new:
            return
        hashes = np.concatenate([self._hashes, *(hashes for hashes, _ in self._new)])
        slots = [np.full(len(hashes), slot, np.int64) for hashes, slot in self._new]
        offsets = [np.arange(len(hashes), dtype=np.int64) * WINDOW for hashes, _ in self._new]
        # Two sorted stretches: a stable sort merges them in linear time.
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._slots = np.concatenate([self._slots, *slots])[order]
        self._offsets = np.concatenate([self._offsets, *offsets])[order]
        self._new.clear()


def _rank_among_equals(values: Hashes) -> Ints:
    """int64 [k]: how many equal values come before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))[: len(ordered)]
    starts = np.repeat(new, np.diff(np.append(new, len(ordered))))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - starts
    return rank
