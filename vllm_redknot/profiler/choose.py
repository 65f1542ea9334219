"""The cheapest windows that hold the most value: a greedy choice along each head's concave hull.

A head may have any of the windows w0 < w1 < ... < everything; each step up has a value (what the loss gains) and a cost
(KV tokens kept). Steps are taken in the order of value per token. Within a head a step that gains little before one
that gains much is taken together with it (the upper concave hull), so the order is that of the fractional knapsack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_redknot.heads.profile import HeadClass, HeadProfile

Window = int | None


@dataclass(frozen=True)
class Step:
    """Raising one head to `window`, from whatever it had: `value` gained for `cost` more tokens of KV."""

    row: int
    head: int
    window: Window
    value: float
    cost: int

    @property
    def density(self) -> float:
        return self.value / self.cost


def tokens_kept(window: Window, sink: int, context: int) -> int:
    """KV tokens a head keeps of a request of `context` tokens."""
    return context if window is None else min(context, sink + window)


def steps_by_density(
    values: Sequence[Sequence[Sequence[float]]], windows: Sequence[Window], sink: int, context: int
) -> list[Step]:
    """All worthwhile steps, best first; those of one head by rising window.

    Args:
        values: [L][H][len(windows) - 1], value of the step from windows[k] to windows[k + 1].
        windows: rising; None, the last, is everything.
    """
    found = [
        step
        for row, heads in enumerate(values)
        for head, gains in enumerate(heads)
        for step in _hull(row, head, gains, windows, sink, context)
    ]
    return sorted(found, key=lambda step: (-step.density, step.row, step.head))


def _hull(
    row: int, head: int, gains: Sequence[float], windows: Sequence[Window], sink: int, context: int
) -> Iterator[Step]:
    at = 0
    while at < len(gains):
        best: tuple[float, int, Step] | None = None
        value = 0.0
        for upto in range(at, len(gains)):
            value += gains[upto]
            cost = tokens_kept(windows[upto + 1], sink, context) - tokens_kept(windows[at], sink, context)
            if cost <= 0:
                continue
            step = Step(row, head, windows[upto + 1], value, cost)
            if best is None or step.density > best[0]:
                best = (step.density, upto + 1, step)
        if best is None or best[0] <= 0:
            return
        yield best[2]
        at = best[1]


def choose_by_share(
    steps: Sequence[Step],
    layer_ids: tuple[int, ...],
    kv_heads: int,
    smallest: int,
    sink: int,
    context: int,
    share: float,
) -> HeadProfile:
    """Every head at window `smallest`, then the best steps that keep at most `share` of all KV tokens at `context`."""
    budget = share * context * len(layer_ids) * kv_heads
    used = tokens_kept(smallest, sink, context) * len(layer_ids) * kv_heads
    window: list[list[Window]] = [[smallest] * kv_heads for _ in layer_ids]
    blocked: set[tuple[int, int]] = set()
    for step in steps:
        place = (step.row, step.head)
        if place in blocked:
            continue
        if used + step.cost > budget:
            # A head's later steps build on this one.
            blocked.add(place)
            continue
        used += step.cost
        window[step.row][step.head] = step.window
    return profile_of(window, layer_ids, sink)


def choose_by_fraction(
    values: Sequence[Sequence[Sequence[float]]],
    layer_ids: tuple[int, ...],
    window: int,
    sink: int,
    fraction: float,
) -> HeadProfile:
    """The `fraction` of heads of highest total value are global (rounded up; ties: the earlier), the others local."""
    places = [(row, head) for row, heads in enumerate(values) for head in range(len(heads))]
    worth = sorted(places, key=lambda place: (-sum(values[place[0]][place[1]]), place))
    best = set(worth[: math.ceil(fraction * len(places))])
    windows = [
        [None if (row, head) in best else window for head in range(len(heads))]
        for row, heads in enumerate(values)
    ]
    return profile_of(windows, layer_ids, sink)


def profile_of(window: Sequence[Sequence[Window]], layer_ids: tuple[int, ...], sink: int) -> HeadProfile:
    """The profile with these windows; None is a global head."""
    return HeadProfile(
        classes=tuple(
            tuple(HeadClass.GLOBAL if w is None else HeadClass.LOCAL for w in row) for row in window
        ),
        window=tuple(tuple(row) for row in window),
        sink=tuple(tuple(0 if w is None else sink for w in row) for row in window),
        layer_ids=layer_ids,
    )


def kept_share(profile: HeadProfile, context: int) -> float:
    """Share of all KV tokens that a request of `context` tokens keeps."""
    kept = sum(
        tokens_kept(*profile.visibility(layer, head), context)
        for layer in profile.layer_ids
        for head in range(profile.num_kv_heads)
    )
    return kept / (context * profile.num_layers * profile.num_kv_heads)
