"""Servers that schedule differently give the same answers. In fp32, so that a wrong page cannot hide in noise."""

from pathlib import Path

import pytest
from vllm import SamplingParams

from tests.engine.conftest import Cut
from tests.engine.harness import ALL_GLOBAL, Completion, Engine, assert_same, engine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prompts(cut: Cut) -> list[list[int]]:
    """Lengths around pages, windows and chunks."""
    return [cut(2000 * i, length) for i, length in enumerate((1, 33, 255, 300, 641, 1024))]


@pytest.fixture(scope="module")
def expected(model_path: Path, prompts: list[list[int]]) -> list[Completion]:
    """What the bundled profile answers with chunks of 512 and pages of 32."""
    with engine(model_path, {}, dtype="float32") as server:
        return server.complete(prompts, prompt_logprobs=True)


@pytest.mark.parametrize("chunk", [64, 2048])
def test_any_chunk_size_gives_the_same(
    chunk: int, model_path: Path, prompts: list[list[int]], expected: list[Completion]
) -> None:
    with engine(model_path, {}, dtype="float32", max_num_batched_tokens=chunk) as other:
        assert_same(other.complete(prompts, prompt_logprobs=True), expected)


@pytest.mark.parametrize("page", [16, 64, 128])
def test_any_page_size_gives_the_same(
    page: int, model_path: Path, prompts: list[list[int]], expected: list[Completion]
) -> None:
    with engine(model_path, {}, dtype="float32", block_size=page) as other:
        assert_same(other.complete(prompts, prompt_logprobs=True), expected)


def test_several_samples_of_one_prompt_equal_stock(model_path: Path, cut: Cut) -> None:
    params = SamplingParams(n=3, temperature=0.8, seed=7, max_tokens=12, ignore_eos=True, detokenize=False)
    prompt = {"prompt_token_ids": cut(40_000, 150)}

    def samples(started: Engine) -> list[list[int]]:
        answers = started.llm.generate([prompt], params, use_tqdm=False)[0].outputs
        return [list(answer.token_ids) for answer in answers]

    with engine(model_path, ALL_GLOBAL, dtype="float32") as server:
        ours = samples(server)
    with engine(model_path, None, dtype="float32") as stock:
        assert samples(stock) == ours
    assert len({tuple(tokens) for tokens in ours}) == 3
