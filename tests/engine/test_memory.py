"""The memory is real: vLLM admits several times as many long requests, and they run at once without preemption."""

from pathlib import Path

import pytest
from vllm import SamplingParams

from tests.engine.conftest import Cut
from tests.engine.harness import Engine, count_preemptions, engine

pytestmark = pytest.mark.slow

PROMPT, ANSWER = 6000, 60
NEEDLE13 = Path(__file__).parents[2] / "benchmarks" / "heads" / "smollm2-needle13.json"
"""13 of 90 heads global, the others window 256: at 6K tokens shorter windows weigh more than at 8K."""
STOCK_REQUESTS = 1
"""Requests of 6K tokens that the pool of `test_four_times...` holds when every head keeps every token."""


def test_maximum_concurrency_is_several_times_stock(model_path: Path) -> None:
    figures = []
    for redknot in (None, {"heads": str(NEEDLE13)}, {}):
        with engine(model_path, redknot, max_model_len=8192, kv_cache_memory_bytes=2**30) as server:
            figures.append(server.max_concurrency)
    stock, needle13, bundled = figures
    assert needle13 >= 4.0 * stock
    assert bundled >= 3.3 * stock


def most_at_once(server: Engine, prompts: list[list[int]]) -> int:
    """Run all prompts; the largest number of requests that held their whole prompt at the same time."""
    params = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True, detokenize=False)
    llm, most = server.llm.llm_engine, 0
    for index, prompt in enumerate(prompts):
        llm.add_request(str(index), {"prompt_token_ids": prompt}, params)
    while llm.has_unfinished_requests():
        llm.step()
        most = max(most, sum(request.num_computed_tokens >= PROMPT for request in server.scheduler.running))
    return most


def test_four_times_as_many_requests_of_6k_tokens_run_at_once_in_the_same_bytes(
    model_path: Path, cut: Cut
) -> None:
    pages = -(-(PROMPT + ANSWER) // 32)
    # One block of stock vLLM is a page of each of the 90 heads: 32 tokens x 64 elements x K and V x 2 bytes.
    pool = 90 * 8192 * (STOCK_REQUESTS * pages + 8)
    limits = {"max_model_len": 6144, "kv_cache_memory_bytes": pool}
    with engine(model_path, None, **limits) as stock:
        assert stock.kv_cache_config.num_blocks // pages == STOCK_REQUESTS
    prompts = [cut(1500 * index, PROMPT) for index in range(4 * STOCK_REQUESTS)]
    with engine(model_path, {"heads": str(NEEDLE13)}, **limits) as ours:
        preempted = count_preemptions(ours)
        free = ours.free_blocks
        assert most_at_once(ours, prompts) == 4 * STOCK_REQUESTS
        assert not preempted
        assert ours.free_blocks == free
