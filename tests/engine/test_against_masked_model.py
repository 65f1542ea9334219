"""The engine against an independent model with explicit per-head masks, on real weights."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.engine.harness import engine, largest_difference
from tests.engine.oracle import MaskedModel, State
from vllm_redknot.evals.texts import essays

pytestmark = pytest.mark.slow

LENGTH = 700


def random_heads(seed: int) -> State:
    """Classes, windows and sinks drawn at random; windows start and end anywhere in a page."""
    draw = random.Random(seed)
    return [
        [None if draw.random() < 0.3 else (draw.choice([1, 7, 32, 100, 257]), draw.choice([0, 1, 5, 40])) for _ in range(3)]
        for _ in range(30)
    ]


def head_file(folder: Path, heads: State) -> Path:
    """The heads as a published-format (V1) head-class file."""
    path = folder / "heads.json"
    path.write_text(
        json.dumps(
            {
                "num_layers": len(heads),
                "num_kv_heads": len(heads[0]),
                "kv_head_classification": [["global" if h is None else "local" for h in row] for row in heads],
                "kv_head_max_distance": [[-1 if h is None else h[0] for h in row] for row in heads],
                "kv_head_sink_size": [[0 if h is None else h[1] for h in row] for row in heads],
            }
        )
    )
    return path


@pytest.fixture(scope="module")
def prompts(model_path: Path) -> list[list[int]]:
    """Two prompts of natural text; the second ends in the middle of a page."""
    ids = AutoTokenizer.from_pretrained(model_path)(essays()[:12_000])["input_ids"]
    return [ids[:LENGTH], ids[LENGTH : 2 * LENGTH - 21]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logprobs_equal_those_of_explicit_masks_in_fp32(
    seed: int, model_path: Path, prompts: list[list[int]], tmp_path: Path
) -> None:
    heads = random_heads(seed)
    model = MaskedModel(model_path, torch.float32)
    expected = [model.prompt_logprobs(prompt, heads) for prompt in prompts]
    dense = model.prompt_logprobs(prompts[0], [[None] * 3] * 30)
    with engine(
        model_path, {"heads": str(head_file(tmp_path, heads))}, dtype="float32", max_num_batched_tokens=[64, 512, 2048][seed]
    ) as ours:
        got = ours.complete(prompts, max_tokens=1, prompt_logprobs=True)
    for completion, logprobs in zip(got, expected, strict=True):
        assert largest_difference(completion.prompt_logprobs, logprobs) < 1e-3
    # The masks matter: without them the same model says something else.
    assert largest_difference(expected[0], dense) > 0.1
