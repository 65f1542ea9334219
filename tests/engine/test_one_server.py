"""One server, many ways to be asked: what a request gets does not depend on its company or on the cache's state.

In fp32, so that a wrong page cannot hide in rounding noise.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm import SamplingParams

from tests.engine.conftest import Cut
from tests.engine.harness import Engine, assert_same, engine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[Engine]:
    """The bundled profile (13 global heads, window 256, sink 4), prefix caching on."""
    with engine(model_path, {}, dtype="float32") as started:
        yield started


def test_a_batch_of_mixed_lengths_equals_each_request_alone(server: Engine, cut: Cut) -> None:
    prompts = [cut(2000 * i, length) for i, length in enumerate((1, 2, 33, 255, 300, 641, 1024))]
    # Prompt logprobs keep a request from reading the prefix cache.
    alone = [server.complete([prompt], prompt_logprobs=True)[0] for prompt in prompts]
    assert_same(server.complete(prompts, prompt_logprobs=True), alone)


def test_a_repeated_prompt_hits_the_prefix_cache_after_local_heads_dropped_its_middle(
    server: Engine, cut: Cut
) -> None:
    prompt = cut(20_000, 1200)
    first = server.complete([prompt])[0]
    again = server.complete([prompt])[0]
    longer = server.complete([prompt + cut(30_000, 100)])[0]
    fresh = server.complete([prompt + cut(30_000, 100)], prompt_logprobs=True)[0]
    assert first.cached_tokens == 0
    assert again.cached_tokens == 1184
    assert longer.cached_tokens >= 1184
    assert_same([again, longer], [first, fresh])


def test_aborted_requests_return_their_pages(server: Engine, cut: Cut) -> None:
    free = server.free_blocks
    params = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True, detokenize=False)
    llm = server.llm.llm_engine
    for index in range(4):
        llm.add_request(f"r{index}", {"prompt_token_ids": cut(3000 * index, 400)}, params)
    for _ in range(5):
        llm.step()
    assert server.free_blocks < free
    llm.abort_request([f"r{index}" for index in range(4)])
    while llm.has_unfinished_requests():
        llm.step()
    llm.step()
    assert server.free_blocks == free
