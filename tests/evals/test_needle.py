"""The needle prompt is what it says it is."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vllm_redknot.evals.needle import needle_prompt


@pytest.mark.parametrize("num_tokens", [200, 1800, 4000])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_prompt_has_its_length_and_the_passcode_at_its_depth(
    model_path: Path, num_tokens: int, depth: float
) -> None:
    prompt = needle_prompt(model_path, num_tokens, depth, seed=3)
    encoded = Tokenizer.from_file(str(model_path / "tokenizer.json")).encode(prompt.completion)
    assert num_tokens - 100 <= len(encoded.ids) <= num_tokens
    assert prompt.completion.count(prompt.passcode) == 2
    place = prompt.completion.index(prompt.passcode) / len(prompt.completion)
    assert place == pytest.approx(depth, abs=0.3 if num_tokens == 200 else 0.06)


def test_seeds_change_text_and_passcode_and_nothing_else_does(model_path: Path) -> None:
    first = needle_prompt(model_path, 500, 0.5, seed=1)
    assert needle_prompt(model_path, 500, 0.5, seed=1) == first
    assert needle_prompt(model_path, 500, 0.5, seed=2).passcode != first.passcode


@pytest.mark.parametrize(("num_tokens", "depth", "named"), [(1000, 1.5, "1.5"), (10, 0.5, "10")])
def test_impossible_prompts_are_refused(model_path: Path, num_tokens: int, depth: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        needle_prompt(model_path, num_tokens, depth, seed=0)
