"""A moved document's keys and values of the first layer, in vLLM's pages, against computing them in their place.

The first layer's keys and values depend on nothing but a token and its position.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4Config, LlamaConfig, PretrainedConfig

from tests.engine.harness import Engine
from tests.engine.reuse_engine import ask, reusing, store_alone, worker
from tests.engine.small_models import BASE
from vllm_redknot.reuse.capture import read_slots

pytestmark = pytest.mark.slow

LENGTH = 4096
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 512,
}
DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}
VARIANTS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "default": (LlamaConfig, {"rope_parameters": DEFAULT}),
    "llama3": (LlamaConfig, {"rope_parameters": LLAMA3}),
    "yarn": (LlamaConfig, {"rope_parameters": YARN}),
    "half of the elements, interleaved": (
        Glm4Config,
        {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.5}, "pad_token_id": 0, "eos_token_id": 1},
    ),
}


def save(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    kind, extra = VARIANTS[name]
    config = kind(
        **{**BASE, "max_position_embeddings": LENGTH},
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        initializer_range=0.15,
        **extra,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def pages_after_prefill(
    server: Engine, prompt: list[int], control: Any, begin: int, end: int
) -> torch.Tensor:
    """fp32 [tokens, H, 2, D]: what the first layer's pages hold of prompt positions [begin, end)."""
    seen: list[torch.Tensor] = []
    reuse = worker()
    original = reuse.end

    def look(message: Any) -> None:
        original(message)
        for request in server.scheduler.running:
            blocks = server.scheduler.kv_cache_manager.get_block_ids(request.request_id)
            pages = reuse._paged()
            if request.num_computed_tokens >= len(prompt):
                ((kind, parts),) = pages.parts.items()
                slots = pages.slots(torch.arange(begin, end), blocks[kind.group])
                seen.append(read_slots(parts[0].layout, slots).float())

    reuse.end = look
    try:
        answer = ask(server, prompt, control, max_tokens=2)
    finally:
        del reuse.end
    assert (answer.reused > 0) == (control != "off")
    return seen[-1]


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in VARIANTS), ("default", "bfloat16")]
)
def test_the_first_layer_of_a_moved_document_is_what_it_would_be_in_its_place(
    name: str, dtype: str, tmp_path: Path
) -> None:
    folder = save(name, tmp_path / "model")
    generator = torch.Generator().manual_seed(1)

    def tokens(length: int) -> list[int]:
        drawn: list[int] = torch.randint(2, 512, (length,), generator=generator).tolist()
        return drawn

    document, intro = tokens(100), tokens(3_001)
    prompt, begin = [*intro, *document, *tokens(9)], len(intro)
    limits: dict[str, Any] = {"skip_tokenizer_init": True, "max_model_len": LENGTH, "dtype": dtype}
    with reusing(folder, tmp_path / "store", **limits, kv_cache_memory_bytes=2**26) as server:
        store_alone(server, document)
        expected = pages_after_prefill(server, prompt, "off", begin, begin + 100)
        server.llm.reset_prefix_cache()
        control = {"spans": [[begin, begin + 100]], "boundary": 0}
        moved = pages_after_prefill(server, prompt, control, begin, begin + 100)
    assert torch.equal(moved[:, :, 1], expected[:, :, 1])
    error = float((moved[:, :, 0] - expected[:, :, 0]).norm() / expected[:, :, 0].norm())
    # In bf16 both sides are rounded, and so are vLLM's cosines: exact keys would be 1.7e-3 off themselves.
    assert error < {"float32": 1e-3, "bfloat16": 4e-3}[dtype], error
