"""Finds the parts of vLLM's decoder layers by what they are made of, whatever the model's class is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from torch import nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.models.utils import extract_layer_index

SHARED_EXPERT_NAMES: Final = ("shared_expert", "shared_experts")
NORM_NAMES: Final = ("pre_feedforward_layernorm", "post_attention_layernorm")
"""The norm before the feed-forward network; a model that has the first uses the second elsewhere."""


class RowStructureError(ValueError):
    """A model whose layers are not built as row skipping needs them."""


@dataclass(frozen=True)
class DecoderLayer:
    """One decoder layer. Its attention and feed-forward network each add to the residual, zero meaning nothing."""

    index: int
    name: str  # of the attention layer in vLLM's forward context
    impl: Any  # the attention layer's implementation
    attention: nn.Module  # forward(positions, hidden_states)
    qkv: QKVParallelLinear
    output: RowParallelLinear
    ffn: nn.Module  # forward(hidden_states)
    ffn_norm: nn.Module | None  # forward(attention output, residual)
    shared_expert: Any | None  # of a Mixture of Experts: serves every token


def decoder_layers(model: nn.Module, impl_class: type) -> Iterator[DecoderLayer]:
    """The layers whose attention is served by `impl_class`.

    Raises:
        RowStructureError: A layer is not one attention module and one feed-forward network.
    """
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if isinstance(module, Attention) and isinstance(module.impl, impl_class):
            attention_path, _, _ = path.rpartition(".")
            layer_path, _, _ = attention_path.rpartition(".")
            yield decoder_layer(layer_path, modules[layer_path], modules[attention_path], module)


def decoder_layer(path: str, layer: nn.Module, attention: nn.Module, attend: Attention) -> DecoderLayer:
    """The parts of one layer.

    Args:
        path: its name in messages.
        layer: the decoder layer.
        attention: the child of it that owns `attend`.
        attend: vLLM's attention layer.

    Raises:
        RowStructureError: It is not one attention module and one feed-forward network.
    """
    ffn = _only(
        path, "feed-forward network", [c for c in layer.children() if c is not attention and _computes(c)]
    )
    _check_call(path, attention, {"positions", "hidden_states"})
    _check_call(path, ffn, None)
    return DecoderLayer(
        index=extract_layer_index(attend.layer_name),
        name=attend.layer_name,
        impl=attend.impl,
        attention=attention,
        qkv=_only(path, "fused QKV projection", _of_type(attention, QKVParallelLinear)),
        output=_only(path, "output projection", _of_type(attention, RowParallelLinear)),
        ffn=ffn,
        ffn_norm=next(
            (found for name in NORM_NAMES if (found := getattr(layer, name, None)) is not None), None
        ),
        shared_expert=_shared_expert(path, ffn),
    )


def _computes(module: nn.Module) -> bool:
    """Norms, rotary embeddings and activations hold no linear layer."""
    return hasattr(module, "experts") or any(isinstance(part, LinearBase) for part in module.modules())


def _of_type(module: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [child for child in module.children() if isinstance(child, kind)]


def _only(path: str, what: str, found: list[Any]) -> Any:
    if len(found) != 1:
        kinds = ", ".join(type(module).__name__ for module in found) or "none"
        raise RowStructureError(f"{path} must have one {what} for row skipping; found: {kinds}")
    return found[0]


def _shared_expert(path: str, ffn: nn.Module) -> Any | None:
    shared = [part for name in SHARED_EXPERT_NAMES if (part := getattr(ffn, name, None)) is not None]
    inside = getattr(getattr(ffn, "experts", None), "shared_experts", None)
    if inside is not None and not shared:
        raise RowStructureError(
            f"{path} has shared experts under none of the names {', '.join(SHARED_EXPERT_NAMES)}: row skipping could"
            " not keep them"
        )
    return shared[0] if shared else None


def _check_call(path: str, module: nn.Module, names: set[str] | None) -> None:
    """`names` are what the module must be called with; None: one argument of any name."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    required = {
        p.name
        for p in parameters
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL
    }
    if required != names if names is not None else len(required) != 1:
        wanted = " and ".join(sorted(names)) if names else "one argument"
        raise RowStructureError(
            f"{path}: {type(module).__name__}.forward takes {', '.join(sorted(required))}; row skipping calls it with"
            f" {wanted}"
        )
