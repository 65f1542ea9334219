"""Moving keys by the frequencies of vLLM's own rotary modules, against those modules at the new position."""

from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.rotary_embedding import (
    DynamicNTKScalingRotaryEmbedding,
    MRotaryEmbedding,
    Phi3LongRoPEScaledRotaryEmbedding,
    get_rope,
)

from vllm_redknot.kernels.rope_relocate import NO_ROTATION, Rotary
from vllm_redknot.kernels.rope_relocate.torch_path import rotate_torch
from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.rotary import LayerParents, rotary_of, verify

LENGTH = 32_768
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SERVED: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({"rope_type": "default", "rope_theta": 10_000.0}, True),
    "interleaved": ({"rope_type": "default", "rope_theta": 10_000.0}, False),
    "partial": ({"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}, True),
    "partial interleaved": (
        {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        False,
    ),
    "linear": ({"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}, True),
    "llama3": (LLAMA3, True),
    "yarn": (YARN, True),
    "yarn interleaved": (YARN, False),
}
REFUSED: dict[str, type[torch.nn.Module]] = {
    kind.__name__: kind
    for kind in (DynamicNTKScalingRotaryEmbedding, Phi3LongRoPEScaledRotaryEmbedding, MRotaryEmbedding)
}
HEAD = 128


@pytest.fixture(autouse=True)
def config() -> Any:
    with set_current_vllm_config(VllmConfig()):
        yield


def rope(parameters: dict[str, Any], neox: bool, dtype: torch.dtype) -> Any:
    return get_rope(HEAD, LENGTH, neox, dict(parameters), dtype)


def owner_of(module: Any) -> torch.nn.Module:
    owner = torch.nn.Module()
    owner.rotary_emb = module
    return owner


@pytest.mark.parametrize("name", SERVED)
def test_a_key_moved_by_the_module_s_frequencies_is_the_module_s_key_at_the_new_position(name: str) -> None:
    parameters, neox = SERVED[name]
    for dtype, bound in ((torch.float32, 2e-3), (torch.bfloat16, 2.5e-3)):
        module = rope(parameters, neox, dtype)
        exact = rope(parameters, neox, torch.float32)
        rotary = rotary_of(owner_of(module), "layer")
        assert rotary.interleaved is not neox
        key = torch.randn(50, 4 * HEAD)
        for start, end in ((0, 1000), (0, LENGTH - 60), (20_000, 3), (700, 701)):
            # vLLM rounds cosines to the model's dtype; a key is compared with what it stands for.
            _, before = exact.forward_native(torch.arange(start, start + 50), key.clone(), key.clone())
            _, after = exact.forward_native(torch.arange(end, end + 50), key.clone(), key.clone())
            moved = rotate_torch(before.to(dtype).view(50, 4, HEAD), rotary.turn(end - start))
            expected = after.view(50, 4, HEAD)
            assert float((moved.float() - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize("name", REFUSED)
def test_embeddings_that_no_fixed_rotation_moves_are_refused_by_name(name: str) -> None:
    module = REFUSED[name].__new__(REFUSED[name])
    torch.nn.Module.__init__(module)
    with pytest.raises(
        ReuseError, match=f"does not serve {name} .*it serves default, linear, llama3 and YaRN"
    ):
        rotary_of(owner_of(module), "model.layers.0.self_attn.attn")


def test_a_layer_without_an_embedding_turns_nothing_and_one_with_two_is_refused() -> None:
    assert rotary_of(torch.nn.Linear(1, 1), "layer") is NO_ROTATION
    owner = owner_of(rope(SERVED["default"][0], True, torch.float32))
    owner.other = rope(LLAMA3, True, torch.float32)
    with pytest.raises(ReuseError, match="several rotary embeddings"):
        rotary_of(owner, "layer")


class Layer(torch.nn.Module):
    """Stands for vLLM's attention layer."""

    layer_name = "model.layers.0.self_attn.attn"
    num_kv_heads = 2
    head_size = HEAD


class Owner(torch.nn.Module):
    """An attention block; `applies` says whether it uses its rotary embedding, and `position_in_values` breaks it."""

    def __init__(self, module: Any, applies: bool = True) -> None:
        super().__init__()
        self.rotary_emb = module
        self.project = torch.nn.Linear(64, 2 * HEAD, bias=False)
        self.attn = Layer()
        self.applies = applies

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        key = self.project(hidden_states)
        if self.applies:
            _, key = self.rotary_emb.forward_native(positions, key.clone(), key)
        return self.attn(key, key, key)


POSITIONS = (0, 1, 37, 5_000, 30_000)


@pytest.mark.parametrize("name", SERVED)
def test_a_layer_that_turns_its_keys_as_its_module_says_passes_the_probe(name: str) -> None:
    owner = Owner(rope(*SERVED[name], torch.float32))
    claim = rotary_of(owner, "layer")
    assert verify(owner, owner.attn, claim, 64, torch.float32, POSITIONS) is claim
    assert "forward" not in vars(owner.attn)


def test_a_layer_that_does_not_use_its_module_turns_nothing() -> None:
    unused = Owner(rope(*SERVED["default"], torch.float32), applies=False)
    claim = rotary_of(unused, "layer")
    assert verify(unused, unused.attn, claim, 64, torch.float32, POSITIONS) is NO_ROTATION


def test_claims_that_are_wrong_fail_the_probe() -> None:
    used = Owner(rope(*SERVED["default"], torch.float32))
    claim = rotary_of(used, "layer")
    for wrong in (NO_ROTATION, Rotary(claim.inv_freq, not claim.interleaved), Rotary(claim.inv_freq * 1.001)):
        with pytest.raises(
            ReuseError, match=r"Owner \(model.layers.0.self_attn.attn\): its keys do not move"
        ):
            verify(used, used.attn, wrong, 64, torch.float32, POSITIONS)


def test_a_module_that_cannot_be_called_alone_is_refused() -> None:
    owner = torch.nn.Linear(64, 64)
    owner.attn = Layer()
    with pytest.raises(ReuseError, match=r"cannot try out how Linear \(model.layers.0"):
        verify(owner, owner.attn, NO_ROTATION, 64, torch.float32, POSITIONS)


def test_owners_of_attention_layers_are_noted_until_the_model_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Attention, "__init__", lambda self: torch.nn.Module.__init__(self))
    parents = LayerParents()
    owner, late = torch.nn.Module(), torch.nn.Module()
    layer = Attention()
    layer.layer_name = "model.layers.3.self_attn.attn"
    owner.attn = layer
    parents.stop()
    late.attn = layer
    assert parents.of("model.layers.3.self_attn.attn") is owner
    with pytest.raises(ReuseError, match="cannot find the rotary embedding of other"):
        parents.of("other")
