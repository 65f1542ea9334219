"""Loading: a stored span's keys and values into a request's pages, at the place where it stands now."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_redknot.kernels.rope_relocate import Rotary, Turn, rope_relocate
from vllm_redknot.reuse.pages import HeadKind, PagedModel
from vllm_redknot.reuse.plan import CleanSpan
from vllm_redknot.reuse.segment import Segment


class Relocator:
    """Writes spans into pages.

    Args:
        pages: the model's pages.
        rotaries: per attention layer, how its keys turn.
    """

    def __init__(self, pages: PagedModel, rotaries: Sequence[Rotary]) -> None:
        self._pages = pages
        self._rotaries = rotaries

    def load(self, segment: Segment, span: CleanSpan, reader: int, blocks: Sequence[Sequence[int]]) -> None:
        """Write what later tokens of the request can see of a span; see `SegmentFormat.covers`.

        Args:
            segment: holds tokens [span.offset, span.offset + span.end - span.begin).
            span: where they stand in the prompt.
            reader: position of the first token that sees them, `span.end` or later.
            blocks: per KV-cache group, the request's block of each page; 0 for none.
        """
        turns: dict[int, Turn] = {}
        starts = segment.format.row_starts(segment.num_tokens)
        for kind, parts in self._pages.parts.items():
            tokens = visible_tokens(kind, span, reader)
            if not len(tokens):
                continue
            rows = self._pages.rows_of(kind, tokens, segment.num_tokens)
            slots = self._pages.slots(tokens - span.offset + span.begin, blocks[kind.group])
            for part in parts:
                device = part.layout.pool.device
                first = part.row * segment.format.num_kv_heads
                kv = torch.stack([segment.kv[starts[first + head] + rows] for head in part.heads], dim=1)
                kv = kv.to(device, non_blocking=True)  # [k, heads, 2, D]
                turn = turns.get(part.row)
                if turn is None:
                    # Keys are stored as at positions 0 to n - 1.
                    turn = self._rotaries[part.row].turn(span.begin - span.offset).to(device)
                    turns[part.row] = turn
                # Not `contiguous`: it leaves the strides of a single row as they are.
                value = kv[:, :, 1].clone(memory_format=torch.contiguous_format)
                rope_relocate(kv[:, :, 0], value, part.layout, slots[None].to(device), turn)


def visible_tokens(kind: HeadKind, span: CleanSpan, reader: int) -> torch.Tensor:
    """int64 [k]: tokens, within the segment, of a span that queries from `reader` on see with a head of this kind.

    All of them for a global head. For a local one those in the window of `reader`, and those below the sequence's sink.
    """
    window_begin = span.begin if kind.window is None else max(span.begin, reader - kind.window + 1)
    tail = min(window_begin, span.end)
    sink_end = min(tail, max(span.begin, kind.sink))
    seen = torch.cat((torch.arange(span.begin, sink_end), torch.arange(tail, span.end)))
    return seen - span.begin + span.offset
