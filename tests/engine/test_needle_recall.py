"""The bundled profile finds what dense attention finds, in its range. Long form: `python -m benchmarks.quality`."""

from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from tests.engine.harness import engine
from tests.engine.head_files import write
from vllm_redknot.evals.needle import NeedlePrompt, needle_prompt

pytestmark = pytest.mark.slow


def found(model: Path, redknot: dict[str, Any] | None, prompts: list[NeedlePrompt]) -> list[bool]:
    """Per prompt, whether the greedy continuation states the passcode."""
    params = SamplingParams(temperature=0.0, max_tokens=8)
    with engine(model, redknot) as server:
        outputs = server.llm.generate([prompt.completion for prompt in prompts], params, use_tqdm=False)
    return [
        prompt.is_answered_by(output.outputs[0].text) for prompt, output in zip(prompts, outputs, strict=True)
    ]


def test_the_bundled_profile_finds_needles_that_dense_attention_finds(model_path: Path) -> None:
    prompts = [needle_prompt(model_path, 900, depth, seed) for depth in (0.1, 0.5, 0.9) for seed in (0, 1)]
    dense, ours = found(model_path, None, prompts), found(model_path, {}, prompts)
    assert sum(dense) >= 5
    assert sum(ours) >= sum(dense)


def test_without_global_heads_needles_are_lost(model_path: Path, tmp_path: Path) -> None:
    """The test above can fail: it is the global heads that find them."""
    prompts = [needle_prompt(model_path, 900, 0.1, seed) for seed in (0, 1, 2)]
    assert sum(found(model_path, {"heads": write(tmp_path, [[(256, 4)] * 3] * 30)}, prompts)) == 0
