"""The process of `redknot verify-reuse`: one engine with a segment store, as `engine_worker` for its requests.

A document is stored by asking for one token behind it alone, marked; where the next request has it too, it is there.
A prompt with stored documents that takes much less from the store than it should is an error: it would be compared with
itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import numpy as np

from vllm_redknot.evals.engine_worker import check_finite, engine_facts, work
from vllm_redknot.evals.requests import Answer, Distributions, Ids
from vllm_redknot.evals.reuse_requests import ReuseRequest, reuse_request_from_json
from vllm_redknot.reuse.control import ARGUMENT
from vllm_redknot.reuse.policy import BLEND

LEAST_REUSED: Final = 0.9
"""Of `ReuseRequest.reused`: what documents have in common may be stored with one of them alone."""
RESPONSE_KEY: Final = "redknot_reuse"
"""Of `kv_transfer_params`."""
Row = tuple[list[int], list[float]]
"""Ids and logprobs: the token that is there, then the most likely ones, falling."""


def main() -> None:
    """Entry point of the process."""
    work(reuse_request_from_json, partial(reuse_answer, stored=set()), _facts)


def reuse_answer(llm: Any, request: ReuseRequest, stored: set[Ids]) -> Answer:
    """The greedy continuation, and the distributions of the forced tokens; from stored documents where asked for.

    `stored` has the documents of the last request that had any, which the store has room for; it is changed.

    Raises:
        RuntimeError: Too few tokens came from the store.
    """
    wish: Any = "off"
    if request.policy is not None:
        documents = [request.prompt[begin:end] for begin, end in request.documents]
        for document in documents:
            if document in stored:
                continue
            # Computed whole, even where it holds a part of another document.
            alone = {"spans": [[0, len(document)]], "reuse": False}
            _generate(llm, document, alone, temperature=0.0, max_tokens=1)
        stored.clear()
        stored.update(documents)
        llm.reset_prefix_cache()
        wish = {"spans": [list(span) for span in request.documents], **request.policy}
    return _continue(llm, request, wish)


def _continue(llm: Any, request: ReuseRequest, wish: Any) -> Answer:
    """One generation gives all as long as greedy tokens are the forced ones; from where they part it is asked again."""
    text, rows, reused = None, list[Row](), 0
    while text is None or len(rows) < len(request.forced):
        output = _generate(
            llm,
            (*request.prompt, *request.forced[: len(rows)]),
            wish,
            temperature=0.0,
            max_tokens=request.max_tokens if text is None else len(request.forced) - len(rows),
            stop=list(request.stop) if text is None else None,
            logprobs=request.top,
        )
        if text is None:
            text = output.outputs[0].text
            reused = _reused(llm, request, wish, output)
        for token, step in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True):
            if len(rows) == len(request.forced):
                break
            rows.append(_row(llm, request, wish, step, len(rows)))
            if token != request.forced[len(rows) - 1]:
                break
    scored = Distributions(
        np.array([ids for ids, _ in rows], np.int32), np.array([logprobs for _, logprobs in rows], np.float32)
    )
    check_finite(request, scored.logprobs.ravel().tolist())
    return Answer(request.key, text, tuple(scored.logprobs[:, 0].tolist()), scored, reused)


def _row(llm: Any, request: ReuseRequest, wish: Any, step: Any, place: int) -> Row:
    """What is expected in place of forced token number `place`."""
    wanted = request.forced[place]
    likely = sorted(step, key=lambda token: step[token].rank)[: request.top]
    if wanted in step:
        logprob = step[wanted].logprob
    else:
        # It is not among the most likely ones, and has to be asked for by name.
        prompt = (*request.prompt, *request.forced[:place])
        output = _generate(llm, prompt, wish, temperature=0.0, max_tokens=1, logprob_token_ids=[wanted])
        logprob = output.outputs[0].logprobs[0][wanted].logprob
    return [wanted, *likely], [float(logprob), *(float(step[token].logprob) for token in likely)]


def _reused(llm: Any, request: ReuseRequest, wish: Any, output: Any) -> int:
    """Prompt tokens whose KV came from the store. Raises RuntimeError."""
    # The prefix cache was empty.
    cached = output.num_cached_tokens or 0
    if "share" in (request.policy or {}):
        # All tokens of moved documents are in steps, so only the response tells.
        cached = _segment_tokens(llm, request, wish, output)
    if cached < LEAST_REUSED * request.reused or (cached and request.policy is None):
        raise RuntimeError(f"{request.key}: {cached} tokens were not computed instead of {request.reused}")
    return int(cached)


def _segment_tokens(llm: Any, request: ReuseRequest, wish: Any, output: Any) -> int:
    # What a response says of reuse is lost where a stop string ends it: ask for one that nothing ends.
    if output.kv_transfer_params is None:
        output = _generate(llm, request.prompt, wish, temperature=0.0, max_tokens=1)
    told = output.kv_transfer_params[RESPONSE_KEY]
    if told.get("policy") != BLEND:
        raise RuntimeError(
            f"{request.key}: {BLEND} was asked for and not given: {told.get('problem', 'no reason')}"
        )
    return int(told["segment_tokens"])


def _generate(llm: Any, prompt: tuple[int, ...], wish: Any, **sampling: Any) -> Any:
    from vllm import SamplingParams

    params = SamplingParams(extra_args={ARGUMENT: wish}, **sampling)
    return llm.generate({"prompt_token_ids": list(prompt)}, params, use_tqdm=False)[0]


def _facts(llm: Any) -> dict[str, Any]:
    """What the engine made of its arguments, and what its receipt is for."""
    from vllm_redknot.reuse.identity import fingerprint_of
    from vllm_redknot.support import resolve_model_heads, resolve_model_rows

    config = llm.llm_engine.vllm_config
    fingerprint = fingerprint_of(config, resolve_model_heads(config).profile, resolve_model_rows(config))
    return {**engine_facts(llm), "fingerprint": fingerprint.to_json()}


if __name__ == "__main__":
    main()
