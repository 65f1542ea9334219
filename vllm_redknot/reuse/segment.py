"""One stored segment in memory: token ids, and the K and V rows its format keeps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.scope import content_id

Tokens = npt.NDArray[np.int32]


class HeadRows(NamedTuple):
    """What a segment holds of one (layer, KV head): views, k rows each."""

    positions: torch.Tensor  # int64 [k], increasing: token positions within the segment
    keys: torch.Tensor  # [k, D], rotated for these positions
    values: torch.Tensor  # [k, D]


@dataclass(frozen=True, eq=False)
class Segment:
    """The KV of n tokens computed alone, at positions 0 to n - 1.

    Attributes:
        format: what is kept.
        tokens: int32 [n], exact ids.
        kv: [rows, 2, D] on the CPU, contiguous, `format.dtype`: the key and the value of each kept token; rows in order
            of (attention layer, KV head, token), so that one copy moves them all. See `SegmentFormat.row_starts`.

    Raises ReuseError where they do not fit each other.
    """

    format: SegmentFormat
    tokens: Tokens
    kv: torch.Tensor

    def __post_init__(self) -> None:
        if self.tokens.ndim != 1 or self.tokens.dtype != np.int32:
            raise ReuseError(f"tokens are {self.tokens.dtype} {self.tokens.shape}: give int32 [n]")
        shape = (self.format.num_rows(self.num_tokens), 2, self.format.head_size)
        if tuple(self.kv.shape) != shape or self.kv.dtype != torch_dtype(self.format):
            raise ReuseError(
                f"kv is {self.kv.dtype} {tuple(self.kv.shape)}: {self.num_tokens} tokens of this format are"
                f" {self.format.dtype} {shape}"
            )
        if self.kv.device.type != "cpu" or not self.kv.is_contiguous():
            raise ReuseError("kv must be contiguous and on the CPU")

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Of host memory: K, V and token ids."""
        return self.kv.nbytes + self.tokens.nbytes

    @cached_property
    def content(self) -> str:
        """The name of its tokens: `content_id`."""
        return content_id(self.tokens.tolist())

    def head(self, layer_row: int, kv_head: int) -> HeadRows:
        """The rows of one KV head of the `layer_row`-th attention layer of the rank."""
        starts = self.format.row_starts(self.num_tokens)
        at = layer_row * self.format.num_kv_heads + kv_head
        rows = self.kv[starts[at] : starts[at + 1]]
        return HeadRows(
            kept_positions(self.format, self.num_tokens, layer_row, kv_head), rows[:, 0], rows[:, 1]
        )


def torch_dtype(layout: SegmentFormat) -> torch.dtype:
    dtype = getattr(torch, layout.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def byte_view(kv: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, writable, not copied."""
    return kv.view(-1).view(torch.uint8).numpy().data


def kept_positions(layout: SegmentFormat, num_tokens: int, layer_row: int, kv_head: int) -> torch.Tensor:
    """int64 [k]: the positions, within a segment of `num_tokens`, that a head keeps."""
    kept = layout.kept(layer_row, kv_head, num_tokens)
    return torch.cat((torch.arange(kept.first), torch.arange(kept.tail_begin, num_tokens)))
