"""Real vLLM engines inside the test process: they start in seconds, and the scheduler is in reach.

One engine lives at a time: vLLM keeps its parallel groups in globals.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by vLLM when it is imported: no engine-core process, no thread pinning (other tests share the cores).
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

ALL_GLOBAL = {"heads": "all-global"}


@dataclass(frozen=True)
class Completion:
    """One greedy continuation."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the chosen tokens
    runners_up: tuple[dict[int, float], ...]  # per step, the most likely tokens and their logprobs
    prompt_logprobs: tuple[float, ...]  # of prompt tokens 1.., empty unless asked for
    cached_tokens: int


class Engine:
    """A vLLM engine and short ways to ask it."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    @property
    def core(self) -> Any:
        """vLLM's engine core."""
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def scheduler(self) -> Any:
        """vLLM's scheduler."""
        return self.core.scheduler

    @property
    def kv_cache_config(self) -> Any:
        """Groups and number of blocks."""
        return self.scheduler.kv_cache_config

    @property
    def free_blocks(self) -> int:
        """Blocks no request holds."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    @property
    def max_concurrency(self) -> float:
        """vLLM's own figure for requests of the maximum length."""
        return float(self.llm.llm_engine.vllm_config.cache_config.kv_cache_max_concurrency)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 8,
        prompt_logprobs: bool = False,
        **sampling: Any,
    ) -> list[Completion]:
        """Greedy continuations of token-id prompts, all handed to the engine at once."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            logprobs=5,
            prompt_logprobs=0 if prompt_logprobs else None,
            ignore_eos=True,
            detokenize=False,
            **sampling,
        )
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False
        )
        return [_completion(output) for output in outputs]


def _completion(output: Any) -> Completion:
    answer = output.outputs[0]
    prompt = output.prompt_logprobs or []
    pairs = zip(output.prompt_token_ids[1:], prompt[1:], strict=True) if prompt else []
    return Completion(
        token_ids=tuple(answer.token_ids),
        logprobs=tuple(
            step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs, strict=True)
        ),
        runners_up=tuple({token: lp.logprob for token, lp in step.items()} for step in answer.logprobs),
        prompt_logprobs=tuple(step[token].logprob for token, step in pairs),
        cached_tokens=output.num_cached_tokens or 0,
    )


@contextmanager
def engine(model: Path | str, redknot: dict[str, Any] | None = None, **arguments: Any) -> Iterator[Engine]:
    """An engine with the REDKNOT backend and these settings, or, with `redknot=None`, stock vLLM's."""
    settings: dict[str, Any] = {
        "attention_backend": "CPU_ATTN" if redknot is None else "REDKNOT",
        "additional_config": {} if redknot is None else {"redknot": redknot},
        "max_model_len": 4352,
        "max_num_batched_tokens": 512,
        "block_size": 32,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 2**28,
        "seed": 0,
        **arguments,
    }
    llm = LLM(str(model), **settings)
    try:
        yield Engine(llm)
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def count_preemptions(server: Engine) -> list[str]:
    """A list that grows by a request id whenever the scheduler preempts one."""
    seen: list[str] = []
    original = server.scheduler._preempt_request

    def note(request: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.append(request.request_id)
        return original(request, *arguments, **keywords)

    server.scheduler._preempt_request = note
    return seen


def root_mean_square(left: Sequence[float], right: Sequence[float]) -> float:
    """Root mean square difference of two equally long rows of logprobs."""
    assert len(left) == len(right) > 0
    return (sum((a - b) ** 2 for a, b in zip(left, right, strict=True)) / len(left)) ** 0.5


def largest_difference(left: Sequence[float], right: Sequence[float]) -> float:
    """Largest absolute difference of two equally long rows of logprobs."""
    assert len(left) == len(right) > 0
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


FP32_BOUND = 1e-3
"""In fp32 only the order of summation differs between two schedules."""


def assert_same(got: Sequence[Completion], expected: Sequence[Completion]) -> None:
    """Equal tokens, and logprobs within `FP32_BOUND`."""
    for left, right in zip(got, expected, strict=True):
        assert left.token_ids == right.token_ids
        assert largest_difference(left.logprobs, right.logprobs) < FP32_BOUND
        if left.prompt_logprobs and right.prompt_logprobs:
            assert largest_difference(left.prompt_logprobs, right.prompt_logprobs) < FP32_BOUND
