"""The row schedule that saves most among those whose quality holds.

Assumption: whoever skips less loses less. If a schedule holds, so does every one with later first layers and more
recent tokens, and if one breaks, so does every one that skips at least as much. Quality is near monotone in depth, but
not exactly: so this decides what is tried, not what is written. The schedule chosen was tried itself, and is checked on
held-out texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.rows.sparse_ffn import Predictor, Probe

SPARSE_PAYS: Final = 0.01
"""Share of prefill FLOPs that `sparse_ffn` must save beyond late layers: less is not worth a rule more."""

Holds = Callable[[RowSchedule], bool]
Saved = Callable[[RowSchedule], float]


@dataclass(frozen=True)
class Late:
    """Late layers of a model of L layers: a first layer of L means none."""

    ffn_from: int
    attention_from: int
    recent: int

    def within(self, other: Late) -> bool:
        """Whether it skips nothing that the other does not."""
        return (
            self.ffn_from >= other.ffn_from
            and self.attention_from >= other.attention_from
            and self.recent >= other.recent
        )

    def schedule(self, depth: int, sink: int) -> RowSchedule:
        """As the engine takes it. Something must be skipped."""
        return RowSchedule(
            ffn_from=self.ffn_from,
            attention_from=None if self.attention_from == depth else self.attention_from,
            sink=sink,
            recent=self.recent,
        )


class LateSearch:
    """The late layers that save most, trying few: what the assumption settles is not tried."""

    def __init__(self, depth: int, sink: int, recents: Sequence[int], holds: Holds, saved: Saved) -> None:
        """`recents` are the numbers of recent tokens to choose from; `saved` measures what grows with skipping."""
        self._depth, self._sink, self._recents = depth, sink, sorted(set(recents))
        self._try, self._saved = holds, saved
        self._held: list[Late] = []
        self._broken: list[Late] = []
        self._worths: dict[Late, float] = {}

    def best(self) -> RowSchedule | None:
        """None if every schedule breaks a limit."""
        for recent in self._recents:
            both = self._lowest(recent, None, self._depth)
            self._lowest(recent, self._depth, both)
            # Between the two lies a staircase: an earlier first FFN for a later first attention.
            while (best := self._best()) is not None and (open_ := self._open(best, recent)):
                # The middle one by savings: held, it settles all that save less; broken, much of what saves more.
                self._holds(open_[len(open_) // 2])
        best = self._best()
        return None if best is None else best.schedule(self._depth, self._sink)

    def _lowest(self, recent: int, attention: int | None, high: int) -> int:
        """The earliest first FFN that holds, at most `high`, which holds; `attention` None: with it in step."""

        def at(first: int) -> Late:
            return Late(first, first if attention is None else attention, recent)

        def holds(first: int) -> bool:
            return self._holds(at(first))

        while high > 0 and self._known(at(high - 1)):
            high -= 1
        step = 1
        while high > 0:
            low = max(high - step, 0)
            if not holds(low):
                break
            high, step = low, 2 * step
        else:
            return 0
        while high - low > 1:
            middle = (low + high) // 2
            if holds(middle):
                high = middle
            else:
                low = middle
        return high

    def _open(self, best: Late, recent: int) -> list[Late]:
        """What would save more than the best so far and is not settled, by rising savings."""
        worth = self._worth(best)
        open_ = [
            late
            for first in range(self._depth)
            for attention in range(first, self._depth + 1)
            if self._known(late := Late(first, attention, recent)) is None and self._worth(late) > worth
        ]
        return sorted(open_, key=self._worth)

    def _best(self) -> Late | None:
        return max(self._held, key=self._worth, default=None)

    def _worth(self, late: Late) -> float:
        if late not in self._worths:
            self._worths[late] = self._saved(late.schedule(self._depth, self._sink))
        return self._worths[late]

    def _known(self, late: Late) -> bool | None:
        if late.ffn_from == self._depth or any(late.within(held) for held in self._held):
            return True
        return False if any(broken.within(late) for broken in self._broken) else None

    def _holds(self, late: Late) -> bool:
        known = self._known(late)
        if known is None:
            known = self._try(late.schedule(self._depth, self._sink))
            (self._held if known else self._broken).append(late)
        return known


def with_sparse_ffn(
    schedule: RowSchedule,
    probes: Mapping[int, Mapping[float, Probe]],
    holds: Holds,
    saved: Saved,
) -> RowSchedule:
    """The schedule with predictors in the layers before the late ones, if that pays; else as it is.

    Downward from the first late layer, each layer takes the largest share of skipped tokens that still holds, until one
    takes none: earlier layers are taken to matter more.

    Args:
        probes: layer -> share of its tokens that skip -> the probe that does so.
    """
    found: dict[int, Probe] = {}
    last = schedule
    for layer in sorted(probes, reverse=True):
        for share in sorted(probes[layer], reverse=True):
            tried = {layer: probes[layer][share], **found}
            rule = Predictor(rule="predictor", probes={str(at): probe for at, probe in tried.items()})
            candidate = RowSchedule.model_validate({**dict(schedule), "sparse_ffn": rule})
            if holds(candidate):
                found, last = tried, candidate
                break
        else:
            break
    return last if saved(last) - saved(schedule) >= SPARSE_PAYS else schedule
