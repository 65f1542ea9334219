"""Blend in one engine step: whose rows are chosen from, and the plan of what the rest of the layers computes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.policy import Blend
from vllm_redknot.rows.plan import RowPlan, Span

if TYPE_CHECKING:
    from vllm_redknot.attention.step import Step


class BlendedRows(NamedTuple):
    """Rows [start, stop) of a step: neighbouring tokens of a moved span, whose stored KV is in their slots."""

    start: int
    stop: int
    blend: Blend


class BlendStep:
    """One step in which moved spans are blended.

    Args:
        step: the step.
        parts: disjoint.
        layout: of the early layer.
    """

    def __init__(self, step: Step, parts: Sequence[BlendedRows], layout: SegmentLayout) -> None:
        self.step = step
        self._parts = tuple(parts)
        self._layout = layout

    def choose(self, key: torch.Tensor, value: torch.Tensor) -> RowPlan | None:
        """Which rows go on, now that the early layer has projected all; None if all do.

        Args:
            key: [T', H, D], of the early layer, as it would be stored.
            value: like key.
        """
        skips = torch.zeros(key.shape[0], dtype=torch.bool)
        for start, stop, blend in self._parts:
            found = deviations(key, value, self._layout, self.step.slot_mappings, start, stop)
            # Stable: equal ones, such as zeros, by their place.
            order = found.cpu().argsort(descending=True, stable=True)
            skips[start + order[blend.chosen(stop - start) :]] = True
        if not bool(skips.any()):
            return None
        ends = self.step.batch.cu_seqlens_q.tolist()
        kept, skipping = split_rows(skips, ends, self.step.seq_lens_cpu.tolist())
        return RowPlan(self.step, kept, skipping)


def deviations(
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SegmentLayout,
    slot_mappings: torch.Tensor,
    start: int,
    stop: int,
) -> torch.Tensor:
    """fp32 [stop - start]: squared distance of each row's K and V, over all heads, from those in its slots.

    Args:
        key: [T', H, D].
        value: like key.
        layout: the layer's segments.
        slot_mappings: int64 [G, T].
        start: first row.
        stop: end of rows.
    """
    slots = slot_mappings[layout.group.long(), start:stop]  # [H, n]
    page, slot = slots // layout.page_size, slots % layout.page_size
    first = page * layout.page_stride + slot * layout.token_stride + layout.base[:, None]
    index = first[:, :, None] + torch.arange(layout.head_size, device=slots.device)  # [H, n, D]
    found = torch.zeros(stop - start, dtype=torch.float32, device=key.device)
    for fresh, offset in ((key, 0), (value, layout.value_offset)):
        stored = layout.pool[index + offset].float()
        found += (fresh[start:stop].transpose(0, 1).float() - stored).square().sum(dim=(0, 2))
    return found


def split_rows(
    skips: torch.Tensor, row_starts: Sequence[int], seq_lens: Sequence[int]
) -> tuple[list[Span], list[Span]]:
    """Rows that go on and rows that do not, as runs of neighbours of one request; padding is in neither.

    Args:
        skips: bool [T'] on the CPU.
        row_starts: [R + 1]; request r has rows ``row_starts[r] .. row_starts[r + 1]``.
        seq_lens: [R]; tokens of each request including its rows.
    """
    kept: list[Span] = []
    skipping: list[Span] = []
    changes = (torch.nonzero(skips[1:] != skips[:-1])[:, 0] + 1).tolist()
    for request, (begin, end) in enumerate(itertools.pairwise(row_starts)):
        cuts = [begin, *(row for row in changes if begin < row < end), end]
        for start, stop in itertools.pairwise(cuts):
            if start < stop:
                spans = skipping if bool(skips[start]) else kept
                spans.append(Span(request, start, stop, seq_lens[request] - (end - stop)))
    return kept, skipping


def rows_at(slots: torch.Tensor, slot_mapping: torch.Tensor) -> int:
    """The row of a step at which neighbouring tokens lie that have these slots.

    Args:
        slots: int64 [n], of one head.
        slot_mapping: int64 [T], of the head's group.

    Raises:
        ReuseError: The step does not compute these tokens.
    """
    slots = slots.to(slot_mapping.device)
    start = int((slot_mapping == slots[0]).nonzero()[:1].sum())
    if not torch.equal(slot_mapping[start : start + len(slots)], slots):
        raise ReuseError("the step does not compute the tokens that are to be blended")
    return start
