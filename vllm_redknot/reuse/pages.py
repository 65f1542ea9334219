"""Where a segment's rows lie in a request's pages: the arithmetic that loading and gathering share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.reuse.format import KeptTokens, SegmentFormat

Slots = torch.Tensor
"""int64 [k]: page * page_size + slot in page."""


class MissingPageError(RuntimeError):
    """A token that a head keeps has no page any more."""


class HeadKind(NamedTuple):
    """What decides which tokens of a head are stored, and in which blocks."""

    group: int
    window: int | None
    sink: int


@dataclass(frozen=True)
class Part:
    """The heads of one layer that are of one kind."""

    row: int  # of the layer in the format
    heads: tuple[int, ...]
    layout: SegmentLayout  # of these heads only, all in group 0


class PagedModel:
    """The attention layers of a model as pages and as rows of the segment format.

    Args:
        layout: the segment format.
        layers: per row of the format, where the layer's segments lie.
        groups: per row, the KV-cache group of each KV head.
    """

    def __init__(
        self, layout: SegmentFormat, layers: Sequence[SegmentLayout], groups: Sequence[Sequence[int]]
    ) -> None:
        self.format = layout
        self.layers = tuple(layers)
        self.page_size = layers[0].page_size
        self.parts: dict[HeadKind, list[Part]] = {}
        for row, (layer, of_heads) in enumerate(zip(layers, groups, strict=True)):
            kinds: dict[HeadKind, list[int]] = {}
            for head, group in enumerate(of_heads):
                kind = HeadKind(group, layout.window[row][head], layout.sink[row][head])
                kinds.setdefault(kind, []).append(head)
            for kind, heads in kinds.items():
                self.parts.setdefault(kind, []).append(Part(row, tuple(heads), _only(layer, heads)))

    def slots(self, positions: torch.Tensor, blocks: Sequence[int]) -> Slots:
        """The slots of prompt positions (int64 [k]). Raises MissingPageError where one has no block."""
        table = torch.tensor(blocks, dtype=torch.int64)
        pages = positions // self.page_size
        if len(pages) and int(pages.max()) >= len(table):
            raise MissingPageError(f"position {int(positions.max())} is beyond the request's pages")
        block = table[pages]
        if bool((block == 0).any()):
            raise MissingPageError(f"position {int(positions[block == 0][0])} has no page any more")
        return block * self.page_size + positions % self.page_size

    def rows_of(self, kind: HeadKind, tokens: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Rows, within a head of a segment of `num_tokens`, of tokens (int64 [k]) that the head keeps."""
        kept = self.kept(kind, num_tokens)
        return torch.where(tokens < kept.first, tokens, tokens - kept.tail_begin + kept.first)

    def kept(self, kind: HeadKind, num_tokens: int) -> KeptTokens:
        """What heads of a kind keep of a segment of `num_tokens`."""
        part = self.parts[kind][0]
        return self.format.kept(part.row, part.heads[0], num_tokens)


def _only(layer: SegmentLayout, heads: Sequence[int]) -> SegmentLayout:
    index = torch.tensor(heads, device=layer.base.device)
    return dataclasses.replace(
        layer,
        base=layer.base[index].contiguous(),
        group=torch.zeros_like(layer.group[index]),
        window=layer.window[index].contiguous(),
        sink=layer.sink[index].contiguous(),
    )
