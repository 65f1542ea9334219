"""The rows of one engine step: which may skip work, and what the attention kernel needs to run the others alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from vllm_redknot.kernels.segpaged_attention import plan_batch

if TYPE_CHECKING:
    from vllm_redknot.attention.step import Step
    from vllm_redknot.rows.schedule import RowSchedule


@dataclass(frozen=True)
class Span:
    """Neighbouring rows of one request."""

    request: int
    start: int  # row of the step
    stop: int
    seq_len: int  # tokens of the request up to and including the last row

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start


class RowPass(NamedTuple):
    """A run of an attention layer over some of a step's rows."""

    step: Step
    attends: bool  # False: K and V are stored, and that is all


def split_step(
    row_starts: Sequence[int], seq_lens: Sequence[int], prompt_lens: Sequence[int], schedule: RowSchedule
) -> tuple[list[Span], list[Span]]:
    """Spans of rows that run everything, and of rows that may skip. By position alone, so any chunks give the same.

    Args:
        row_starts: R + 1 or more entries; request r has rows ``row_starts[r] .. row_starts[r + 1]``.
        seq_lens: at least R; tokens of each request including its rows.
        prompt_lens: R; tokens of each request's prompt, 0 for a request that skips nothing.
        schedule: which positions of a prompt may skip.
    """
    kept: list[Span] = []
    skipping: list[Span] = []
    for request, prompt_len in enumerate(prompt_lens):
        start, stop, end = row_starts[request], row_starts[request + 1], seq_lens[request]
        first = end - (stop - start)  # position of the first row
        low, high = schedule.skippable(prompt_len) if prompt_len else (end, end)
        low, high = min(max(low, first), end), min(max(high, first), end)
        cuts = (first, low, high, end) if low < high else (first, end)
        for spans, begin, until in zip((kept, skipping, kept), cuts, cuts[1:], strict=False):
            if until > begin:
                spans.append(Span(request, start + begin - first, start + until - first, until))
    return kept, skipping


class RowPlan:
    """One step in which some rows may skip. All layers share it; what no layer asks for is not built."""

    def __init__(self, step: Step, kept: Sequence[Span], skipping: Sequence[Span]) -> None:
        self._step = step
        self._kept = tuple(kept)
        self._skipping = tuple(skipping)
        self.num_kept = sum(span.rows for span in kept)
        self.num_skipping = sum(span.rows for span in skipping)

    @property
    def lengths(self) -> list[int]:
        """Skipping rows of each request that has any, in order."""
        return [span.rows for span in self._skipping]

    @cached_property
    def kept(self) -> torch.Tensor:
        """int64 [K], increasing: rows that run everything. Padding is in neither set."""
        return self._rows(self._kept)

    @cached_property
    def skipping(self) -> torch.Tensor:
        """int64 [N], increasing: rows that may skip."""
        return self._rows(self._skipping)

    @cached_property
    def kept_step(self) -> Step:
        """The step of the kept rows alone: each span is a request whose sequence ends with the span's last row.

        The keys of all earlier tokens, skipping ones included, must have been written before it is attended.
        """
        step, spans = self._step, self._kept
        device = step.block_tables.device
        requests = torch.tensor([span.request for span in spans], device=device)
        ends = [0]
        for span in spans:
            ends.append(ends[-1] + span.rows)
        seq_lens = torch.tensor([span.seq_len for span in spans], dtype=torch.int32)
        batch = plan_batch(
            step.block_tables.index_select(1, requests),
            torch.tensor(ends, dtype=torch.int32, device=device),
            seq_lens.to(device),
            ends[-1],
            max(span.rows for span in spans),
            max(span.seq_len for span in spans),
        )
        slots = step.slot_mappings.index_select(1, self.kept)
        return replace(
            step,
            slot_mappings=slots,
            block_tables=batch.block_tables,
            batch=batch,
            seq_lens_cpu=seq_lens,
            rows=None,
        )

    @cached_property
    def skipping_step(self) -> Step:
        """The step of the skipping rows, for writing their K and V; nothing may attend with it."""
        return replace(
            self._step, slot_mappings=self._step.slot_mappings.index_select(1, self.skipping), rows=None
        )

    def _rows(self, spans: Sequence[Span]) -> torch.Tensor:
        ranges = [torch.arange(span.start, span.stop) for span in spans]
        rows = torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64)
        return rows.to(self._step.slot_mappings.device, non_blocking=True)
