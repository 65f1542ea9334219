"""Row skipping under torch.compile: the modules that skip are opaque to it, as vLLM's attention is.

Which rows skip depends on the step, so it cannot be part of a compiled graph. The graph calls an operator with the
attention layer's name; the operator finds the layer through vLLM's forward context and runs its modules eagerly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from vllm.forward_context import get_forward_context
from vllm.utils.torch_utils import direct_register_custom_op

from vllm_redknot.rows.structure import DecoderLayer

ATTENTION = "redknot_row_attention"
FFN = "redknot_row_ffn"


def hide_attention(layer: DecoderLayer) -> None:
    """Make the forward of a layer's attention an operator."""
    _register_operators()
    layer.impl.row_attention = layer.attention.forward
    name = layer.name

    def forward(positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.vllm.redknot_row_attention(hidden_states, positions, name)
        return result

    layer.attention.forward = forward


def hide_ffn(layer: DecoderLayer) -> None:
    """Make the forward of a layer's feed-forward network an operator."""
    _register_operators()
    layer.impl.row_ffn = layer.ffn.forward
    name = layer.name

    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.vllm.redknot_row_ffn(hidden_states, name)
        return result

    layer.ffn.forward = forward


def row_attention(hidden_states: torch.Tensor, positions: torch.Tensor, layer_name: str) -> torch.Tensor:
    """A late layer's attention, [T, E] to [T, E]."""
    result: torch.Tensor = _impl(layer_name).row_attention(positions, hidden_states)
    return result


def row_ffn(hidden_states: torch.Tensor, layer_name: str) -> torch.Tensor:
    """A late layer's feed-forward network, [T, E] to [T, E]."""
    result: torch.Tensor = _impl(layer_name).row_ffn(hidden_states)
    return result


def _impl(layer_name: str) -> Any:
    return get_forward_context().no_compile_layers[layer_name].impl


def _like_attention(hidden_states: torch.Tensor, positions: torch.Tensor, layer_name: str) -> torch.Tensor:
    del positions, layer_name
    return torch.empty_like(hidden_states)


def _like_ffn(hidden_states: torch.Tensor, layer_name: str) -> torch.Tensor:
    del layer_name
    return torch.empty_like(hidden_states)


@lru_cache
def _register_operators() -> None:
    operators: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
        (ATTENTION, row_attention, _like_attention),
        (FFN, row_ffn, _like_ffn),
    ]
    for name, function, shape in operators:
        direct_register_custom_op(name, function, fake_impl=shape)
