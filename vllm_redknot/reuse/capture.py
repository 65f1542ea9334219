"""Storing: a document's keys and values out of a request's pages, chunk by chunk as they are computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.rope_relocate import Rotary
from vllm_redknot.kernels.rope_relocate.torch_path import rotate_torch
from vllm_redknot.reuse.pages import HeadKind, PagedModel
from vllm_redknot.reuse.segment import Segment, torch_dtype


class DocumentReader:
    """Reads one document of `num_tokens` tokens that stands at position `begin` of a request."""

    def __init__(self, pages: PagedModel, rotaries: Sequence[Rotary], begin: int, num_tokens: int) -> None:
        self._pages = pages
        self._rotaries = rotaries
        self._begin = begin
        self._num_tokens = num_tokens
        rows, size = pages.format.num_rows(num_tokens), pages.format.head_size
        self._kv = torch.empty((rows, 2, size), dtype=torch_dtype(pages.format))

    def read(self, start: int, stop: int, blocks: Sequence[Sequence[int]]) -> None:
        """Copy what is kept of prompt positions [start, stop), whose KV is in the pages.

        Raises:
            MissingPageError: A local head has dropped a page that it keeps in a segment.
        """
        starts = self._pages.format.row_starts(self._num_tokens)
        for kind, parts in self._pages.parts.items():
            tokens = self._kept(kind, start - self._begin, stop - self._begin)
            if not len(tokens):
                continue
            rows = self._pages.rows_of(kind, tokens, self._num_tokens)
            slots = self._pages.slots(tokens + self._begin, blocks[kind.group])
            for part in parts:
                kv = read_slots(part.layout, slots)
                # Keys are stored as at positions 0 to n - 1.
                kv[:, :, 0] = rotate_torch(kv[:, :, 0], self._rotaries[part.row].turn(-self._begin))
                for index, head in enumerate(part.heads):
                    first = starts[part.row * self._pages.format.num_kv_heads + head]
                    self._kv[first + rows] = kv[:, index]

    def segment(self, tokens: npt.NDArray[np.int32]) -> Segment:
        """The document, all of which has been read."""
        return Segment(self._pages.format, tokens, self._kv)

    def _kept(self, kind: HeadKind, start: int, stop: int) -> torch.Tensor:
        kept = self._pages.kept(kind, self._num_tokens)
        tokens = torch.arange(start, stop)
        return tokens[(tokens < kept.first) | (tokens >= kept.tail_begin)]


def read_slots(layout: SegmentLayout, slots: torch.Tensor) -> torch.Tensor:
    """[k, H, 2, D] on the CPU: keys and values of slots (int64 [k]) of a layer's segments."""
    device = layout.pool.device
    slots = slots.to(device)
    row = (slots // layout.page_size) * layout.page_stride + (slots % layout.page_size) * layout.token_stride
    part = torch.tensor([0, layout.value_offset], device=device)
    lane = torch.arange(layout.head_size, device=device)
    index = row[:, None, None, None] + layout.base[:, None, None] + part[:, None] + lane
    return layout.pool[index].cpu()
