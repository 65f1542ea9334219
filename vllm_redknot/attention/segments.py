"""Head segments: every (layer, KV head) is a KV-cache layer of its own to vLLM.

The `Attention` layer itself stands for KV head 0, because vLLM looks up attention metadata under the layer's name; a
`HeadSegment` stands for each further head. Their specs say what each head keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec

from vllm_redknot.heads.profile import HeadVisibility
from vllm_redknot.kvcache.spec import SinkWindowSpec

if TYPE_CHECKING:
    from vllm_redknot.attention.model import SegmentedModel


def segment_names(layer_name: str, num_kv_heads: int) -> list[str]:
    """KV-cache layer names of a layer's heads. Its index stays the only integer path component, as vLLM requires."""
    return [layer_name, *(f"{layer_name}.kv_head_{head}" for head in range(1, num_kv_heads))]


class HeadSegment(AttentionLayerBase):
    """The KV-cache layer of one KV head other than a layer's first."""

    def __init__(self, parent: Any, visibility: HeadVisibility, model: SegmentedModel) -> None:
        self.parent = parent
        self.visibility = visibility
        self.model = model
        # vLLM gives KV-cache layers of one group separate metadata where their query-head counts differ.
        self.num_heads = parent.num_heads
        self.kv_cache = torch.tensor([])

    def get_attn_backend(self) -> type[AttentionBackend]:
        """The layer's backend."""
        backend: type[AttentionBackend] = self.parent.attn_backend
        return backend

    def get_kv_cache_spec(self, vllm_config: Any) -> KVCacheSpec:
        """What this head keeps."""
        return head_spec(vllm_config, parent=self.parent, visibility=self.visibility)


def head_spec(vllm_config: Any, *, parent: Any, visibility: HeadVisibility) -> KVCacheSpec:
    """The KV-cache spec of one KV head: every token, or sinks and a window."""
    # The block size may change between construction and this call.
    page = {
        "block_size": vllm_config.cache_config.block_size,
        "num_kv_heads": 1,
        "head_size": parent.head_size,
        "head_size_v": parent.head_size_v,
        "dtype": parent.kv_cache_torch_dtype,
    }
    if visibility.window is None:
        return FullAttentionSpec(**page)
    return SinkWindowSpec(**page, sliding_window=visibility.window, num_sink_tokens=visibility.sink)


def add_segments(
    context: dict[str, Any], layer_name: str, visibilities: Sequence[HeadVisibility], model: SegmentedModel
) -> list[str]:
    """Make a layer's heads KV-cache layers: enter companions into the forward context and narrow the layer to head 0.

    Args:
        context: vLLM's static forward context; changed in place.
        layer_name: the `Attention` layer's entry.
        visibilities: one per KV head of this rank.
        model: the state that all segments share.

    Returns:
        The segments' names, by KV head.
    """
    parent = context[layer_name]
    names = segment_names(layer_name, len(visibilities))
    for name, visibility in zip(names[1:], visibilities[1:], strict=True):
        context[name] = HeadSegment(parent, visibility, model)
    parent.get_kv_cache_spec = partial(head_spec, parent=parent, visibility=visibilities[0])
    return names
