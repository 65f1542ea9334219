"""How each attention layer turns its keys, learnt from the model's own modules and tried on them.

The configuration alone does not say it: models decide in code whether pairs are interleaved and which layers have no
position embedding. So frequencies come from vLLM's rotary module beside the attention layer, and `verify` then runs
the layer's own code at several positions: a key must move by exactly this rotation, or reuse is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding, RotaryEmbeddingBase
from vllm.model_executor.layers.rotary_embedding.linear_scaling_rope import LinearScalingRotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.llama3_rope import Llama3RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.yarn_scaling_rope import YaRNScalingRotaryEmbedding

from vllm_redknot.kernels.rope_relocate import NO_ROTATION, Rotary
from vllm_redknot.kernels.rope_relocate.torch_path import rotate_torch
from vllm_redknot.reuse.faults import ReuseError

SERVED: Final = "default, linear, llama3 and YaRN rotary embeddings, and layers without any"
ROTARY_PACKAGE: Final = RotaryEmbeddingBase.__module__.rpartition(".")[0]
TOLERANCE: Final = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""Relative error of a moved key. A wrong frequency or pairing gives 0.1 or more."""
PROBE_TOKENS: Final = 8


class LayerParents:
    """Remembers, while a model is built, which module owns each attention layer: its rotary embedding is there too.

    And which module owns that one: the decoder layer.
    """

    def __init__(self) -> None:
        self._parents: dict[str, torch.nn.Module] = {}
        self._layers: dict[int, torch.nn.Module | None] = {}  # by the id of the attention layer's owner
        self._hook = torch.nn.modules.module.register_module_module_registration_hook(self._note)

    def _note(self, owner: torch.nn.Module, name: str, child: torch.nn.Module | None) -> None:
        del name
        if isinstance(child, Attention):
            self._parents[child.layer_name] = owner
            self._layers[id(owner)] = None
        elif id(child) in self._layers:
            self._layers[id(child)] = owner

    def stop(self) -> None:
        """The model is complete."""
        self._hook.remove()

    def of(self, layer_name: str) -> torch.nn.Module:
        """The owner of a layer. Raises ReuseError where none was seen."""
        owner = self._parents.get(layer_name)
        if owner is None:
            raise ReuseError(f"KV reuse cannot find the rotary embedding of {layer_name}")
        return owner

    def decoder_layer_of(self, layer_name: str) -> torch.nn.Module:
        """The decoder layer around a layer. Raises ReuseError where none was seen."""
        layer = self._layers.get(id(self.of(layer_name)))
        if layer is None:
            raise ReuseError(f"KV reuse cannot find the decoder layer of {layer_name}")
        return layer


def rotary_of(owner: torch.nn.Module, layer_name: str) -> Rotary:
    """The rotation of the keys of an attention layer, from the rotary module beside it.

    Raises:
        ReuseError: A kind of embedding that no fixed rotation moves, or more than one module.
    """
    # Not all of vLLM's rotary modules share a base class.
    modules = {id(m): m for m in owner.children() if type(m).__module__.startswith(ROTARY_PACKAGE)}
    if not modules:
        return NO_ROTATION
    if len(modules) > 1:
        raise ReuseError(f"KV reuse does not serve layers with several rotary embeddings ({layer_name})")
    module: Any = next(iter(modules.values()))
    kind = type(module)
    if kind is YaRNScalingRotaryEmbedding:
        inv_freq = module._compute_inv_freq(module.scaling_factor)
    elif kind in (RotaryEmbedding, Llama3RotaryEmbedding):
        inv_freq = module._compute_inv_freq(module.base)
    elif kind is LinearScalingRotaryEmbedding and len(module.scaling_factors) == 1:
        inv_freq = module._compute_inv_freq(module.base) / module.scaling_factors[0]
    else:
        raise ReuseError(f"KV reuse does not serve {kind.__name__} ({layer_name}); it serves {SERVED}")
    return Rotary(inv_freq.detach().cpu().double(), interleaved=not module.is_neox_style)


@torch.inference_mode()
def verify(
    owner: torch.nn.Module,
    layer: Any,
    claimed: Rotary,
    hidden_size: int,
    dtype: torch.dtype,
    positions: Sequence[int],
) -> Rotary:
    """Run the layer's own code on the same hidden states at several positions, and compare the keys it makes.

    Args:
        owner: the module that owns the attention layer.
        layer: the attention layer.
        claimed: what its rotary module says.
        hidden_size: of the model.
        dtype: of its activations.
        positions: where to place the first of the probe's tokens.

    Returns:
        `claimed`, or `NO_ROTATION` where the layer does not use its module and keys are the same everywhere.

    Raises:
        ReuseError: The keys differ by something else, or the module cannot be called this way.
    """
    name = f"{type(owner).__name__} ({layer.layer_name})"
    device = next(owner.parameters()).device
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(PROBE_TOKENS, hidden_size, generator=generator).to(device, dtype)
    try:
        keys = [_keys_at(owner, layer, hidden, position) for position in positions]
    except Exception as error:
        raise ReuseError(f"KV reuse cannot try out how {name} turns its keys: {error}") from error
    errors = []
    for rotary in (claimed, NO_ROTATION):
        moved = [rotate_torch(keys[0], rotary.turn(position - positions[0])) for position in positions]
        errors.append(max(_difference(got, key) for got, key in zip(moved, keys, strict=True)))
        if errors[-1] < TOLERANCE[dtype]:
            return rotary
    raise ReuseError(
        f"KV reuse does not serve {name}: its keys do not move by the rotation of its rotary embedding"
        f" (relative error {errors[0]:.3f})"
    )


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got - expected).norm() / expected.norm().clamp_min(1e-12))


def _keys_at(owner: torch.nn.Module, layer: Any, hidden: torch.Tensor, position: int) -> torch.Tensor:
    """fp32 [T, H, D] on the CPU: the keys that the owner hands to its attention layer."""
    seen: list[torch.Tensor] = []

    def record(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **more: Any) -> Any:
        del value, rest, more
        seen.append(key.clone())
        return torch.zeros_like(query)

    layer.forward = record
    try:
        places = torch.arange(position, position + len(hidden), device=hidden.device)
        owner(positions=places, hidden_states=hidden.clone())
    finally:
        del layer.forward
    (key,) = seen
    return key.view(len(hidden), layer.num_kv_heads, layer.head_size).float().cpu()
