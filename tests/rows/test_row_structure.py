"""What row skipping needs of a model's layers, and how it says that it is not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vllm_redknot.rows import structure
from vllm_redknot.rows.structure import RowStructureError, decoder_layers


class Linear(nn.Module):
    """Stands for any of vLLM's linear layers."""


class Qkv(Linear):
    """Stands for a fused QKV projection."""


class Output(Linear):
    """Stands for a row-parallel projection."""


class Impl:
    """Stands for the attention implementation."""


class Attend(nn.Module):
    """Stands for vLLM's `Attention`."""

    layer_name = "model.layers.0.self_attn.attn"

    def __init__(self) -> None:
        super().__init__()
        self.impl = Impl()


class SelfAttention(nn.Module):
    def __init__(self, **extra: nn.Module) -> None:
        super().__init__()
        self.qkv_proj, self.o_proj, self.attn = Qkv(), Output(), Attend()
        for name, module in extra.items():
            setattr(self, name, module)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, **others: Any
    ) -> torch.Tensor: ...


class OtherCall(SelfAttention):
    def forward(self, hidden_states: torch.Tensor, cache: Any) -> torch.Tensor: ...  # type: ignore[override]


class Ffn(nn.Module):
    def __init__(self, **extra: nn.Module) -> None:
        super().__init__()
        self.down_proj = Output()
        for name, module in extra.items():
            setattr(self, name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor: ...


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared_experts = Ffn()


def model(attention: nn.Module | None = None, **children: nn.Module) -> nn.Module:
    """A model of one layer."""
    layer = nn.Module()
    layer.self_attn = attention or SelfAttention()
    layer.post_attention_layernorm = nn.LayerNorm(4)
    for name, child in (children or {"mlp": Ffn()}).items():
        setattr(layer, name, child)
    whole = nn.Module()
    whole.layers = nn.ModuleList([layer])
    return whole


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"Attention": Attend, "LinearBase": Linear, "QKVParallelLinear": Qkv, "RowParallelLinear": Output}
    for name, stand_in in names.items():
        monkeypatch.setattr(structure, name, stand_in)


def test_a_layer_is_taken_apart_whatever_its_parts_are_called() -> None:
    ffn = Ffn()
    whole = model(None, block_with_another_name=ffn)
    [layer] = decoder_layers(whole, Impl)
    assert (layer.index, layer.name) == (0, "model.layers.0.self_attn.attn")
    assert layer.ffn is ffn
    assert layer.attention is whole.layers[0].self_attn
    assert isinstance(layer.qkv, Qkv)
    assert isinstance(layer.output, Output)
    assert layer.ffn_norm is whole.layers[0].post_attention_layernorm
    assert layer.shared_expert is None


def test_shared_experts_are_found_beside_the_routed_ones() -> None:
    shared = Ffn()
    [layer] = decoder_layers(model(None, mlp=Ffn(experts=Fused(), shared_expert=shared)), Impl)
    assert layer.shared_expert is shared


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            model(None, mlp=Ffn(), moe=Ffn()),
            r"layers\.0 must have one feed-forward network .* found: Ffn, Ffn",
        ),
        (model(None, norm=nn.LayerNorm(4)), "must have one feed-forward network .* found: none"),
        (model(SelfAttention(q_proj=Qkv())), "must have one fused QKV projection .* found: Qkv, Qkv"),
        (model(SelfAttention(o_proj=nn.Linear(1, 1))), "must have one output projection .* found: none"),
        (model(OtherCall()), "OtherCall.forward takes cache, hidden_states; row skipping calls it with"),
        (model(None, mlp=Ffn(experts=Fused())), "shared experts under none of the names shared_expert"),
    ],
    ids=[
        "two FFNs",
        "no FFN",
        "two projections",
        "another projection",
        "another call",
        "hidden shared experts",
    ],
)
def test_a_layer_built_otherwise_is_refused_by_its_name(broken: nn.Module, message: str) -> None:
    with pytest.raises(RowStructureError, match=message):
        list(decoder_layers(broken, Impl))


def test_layers_of_another_backend_are_left_alone() -> None:
    assert list(decoder_layers(model(None, norm=nn.LayerNorm(4)), int)) == []
