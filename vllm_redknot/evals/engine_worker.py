"""A process that is one vLLM engine: a line of settings and lines of requests in, a line per answer out.

The settings are arguments of vllm.LLM. Lines on stdout: {"facts": ...} once the engine runs, then an answer per request
in their order; see `worker_lines` for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from vllm_redknot.evals.requests import Answer, Distributions, Request, request_from_json
from vllm_redknot.evals.worker_lines import answer_lines

R = TypeVar("R", bound=Request)


def main() -> None:
    """Entry point of the process."""
    work(request_from_json, _answer, engine_facts)


def work(
    parse: Callable[[Mapping[str, Any]], R],
    answer: Callable[[Any, R], Answer],
    facts: Callable[[Any], dict[str, Any]],
) -> None:
    """Start `vllm.LLM` with the settings on stdin and write what it answers; see `worker_lines`.

    Args:
        parse: makes a request of its line.
        answer: asks the engine, whose prefix cache is empty.
        facts: what the engine says of itself.
    """

    def serve(arguments: dict[str, Any], requests: list[R]) -> Iterator[dict[str, Any]]:
        return _serve(arguments, requests, answer, facts)

    answer_lines(parse, serve)


def _serve(
    arguments: dict[str, Any],
    requests: Sequence[R],
    answer: Callable[[Any, R], Answer],
    facts: Callable[[Any], dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    from vllm import LLM

    llm = LLM(**arguments)
    yield {"facts": facts(llm)}
    for request in requests:
        # One at a time and nothing left from the last: an answer depends on its request alone, interrupted or not.
        llm.reset_prefix_cache()
        yield answer(llm, request).to_json()


def engine_facts(llm: Any) -> dict[str, Any]:
    """What the engine made of its arguments. Bytes and tokens."""
    from vllm.platforms import current_platform

    config = llm.llm_engine.vllm_config
    return {
        "platform": type(current_platform).__name__,
        "device": str(current_platform.get_device_name()),
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "max_model_len": config.model_config.max_model_len,
        "block_size": config.cache_config.block_size,
        "max_in_flight_tokens": config.max_in_flight_tokens,
        "max_concurrency": config.cache_config.kv_cache_max_concurrency,
    }


def _answer(llm: Any, request: Request) -> Answer:
    scored = _distributions(llm, request) if request.spans else None
    if not request.max_tokens:
        return Answer(request.key, scored=scored)
    text, logprobs = _continue(llm, request)
    return Answer(request.key, text, tuple(logprobs), scored)


def _continue(llm: Any, request: Request) -> tuple[str, list[float]]:
    """The greedy text, and the logprobs of the forced tokens.

    As long as greedy tokens are the forced ones, one generation gives both. From where they part it is asked again with
    the forced tokens as a prompt, most of which the prefix cache then has.
    """
    from vllm import SamplingParams

    text, found = None, list[float]()
    while text is None or len(found) < len(request.forced):
        params = SamplingParams(
            temperature=0.0,
            max_tokens=request.max_tokens if text is None else len(request.forced) - len(found),
            stop=list(request.stop) if text is None else None,
            logprob_token_ids=sorted(set(request.forced)) or None,
        )
        prompt = [*request.prompt, *request.forced[: len(found)]]
        output = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0].outputs[0]
        text = output.text if text is None else text
        for token, step in zip(output.token_ids, output.logprobs or (), strict=bool(request.forced)):
            if len(found) == len(request.forced):
                break
            wanted = request.forced[len(found)]
            found.append(float(step[wanted].logprob))
            if token != wanted:
                break
    check_finite(request, found)
    return text, found


def _distributions(llm: Any, request: Request) -> Distributions:
    import numpy as np
    from vllm import SamplingParams

    params = SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=request.top, flat_logprobs=True, detokenize=False
    )
    prompt = list(request.prompt)
    flat = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0].prompt_logprobs
    rows = [row for start, end in request.spans for row in range(start, end)]
    columns = np.asarray(flat.start_indices)[rows][:, None] + np.arange(request.top + 1)
    ids = np.asarray(flat.token_ids, np.int32)[columns]
    logprobs = np.asarray(flat.logprobs, np.float32)[columns]
    check_finite(request, logprobs.ravel().tolist())
    return Distributions(ids, logprobs)


def check_finite(request: Request, logprobs: Sequence[float]) -> None:
    """A model that computes NaN has no score: raises FloatingPointError."""
    wrong = [value for value in logprobs if not math.isfinite(value)]
    if wrong:
        raise FloatingPointError(
            f"{request.key}: {len(wrong)} of {len(logprobs)} logprobs are {wrong[0]}: try --dtype float32"
        )


if __name__ == "__main__":
    main()
