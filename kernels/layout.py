"""The page layout all kernels share, and the arrays that describe a layer's head segments.

A *segment* is the stream of KV pages of one (layer, KV head). Every segment of every layer lives in one flat pool
(the storage vLLM allocated), viewed as a 1-D tensor of the KV dtype. With all numbers in *elements*, not bytes:

    key of token slot t in page p of head h   : pool[base[h] + p * page_stride + t * token_stride + 0      .. + D)
    value of the same slot                    : the same + value_offset

Pages interleave K and V per token, so token_stride = 2 * D and value_offset = D; kernels take the strides, not this.
"""

from dataclasses import dataclass

import torch

GLOBAL_WINDOW = 2**31 - 1
"""The window of a head that sees everything. `i - j < GLOBAL_WINDOW` holds for every pair of positions."""


@dataclass(frozen=True)
class SegmentLayout:
    """Where the segments of one layer lie, and what each KV head may see. H = KV heads of the layer on this rank.

    Visibility (the oracle says exactly this): key j is visible to query i of head h iff
    ``j <= i and (i - j < window[h] or j < sink[h])``, positions absolute in the sequence. A global head has
    ``window == GLOBAL_WINDOW`` and ``sink == 0``.
    """

    pool: torch.Tensor  # [elements], 1-D, contiguous, the KV dtype; shared by all layers
    base: torch.Tensor  # int64 [H], offset of page 0 of each head's segment
    group: torch.Tensor  # int32 [H], which of the G block tables / slot mappings the head uses
    window: torch.Tensor  # int32 [H], >= 1
    sink: torch.Tensor  # int32 [H], >= 0
    page_stride: int  # elements between page p and page p + 1 of one segment
    token_stride: int  # elements between two token slots of a page
    value_offset: int  # elements from a key to its value
    page_size: int  # token slots in a page
    head_size: int  # D

    @property
    def num_kv_heads(self) -> int:
        return self.base.numel()


HEAD_SIZES = (64, 80, 96, 128, 192, 256)
"""Head sizes every kernel is built and tested for."""
