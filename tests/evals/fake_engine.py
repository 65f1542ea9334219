"""Speaks the protocol of `engine_worker` without vLLM: right answers as stock, every other one wrong as REDKNOT.

Run as a script. `additional_config` may hold "crash_after": N, "fail": message, "hang": true.
"""

import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vllm_redknot.evals.requests import Answer, Distributions, Request, request_from_json


def main() -> None:
    arguments = json.loads(sys.stdin.readline())["engine"]
    requests = []
    while "end" not in (line := json.loads(sys.stdin.readline())):
        requests.append(request_from_json(line))
    mode: dict[str, Any] = arguments.get("additional_config", {})
    if "fail" in mode:
        say({"error": mode["fail"]})
        sys.exit(1)
    tokenizer = Tokenizer.from_file(f"{arguments['model']}/tokenizer.json") if "model" in arguments else None
    say({"facts": {"dtype": "bfloat16", "max_in_flight_tokens": 512, "device": "none"}})
    for number, request in enumerate(requests):
        if number == mode.get("crash_after"):
            print("a library says something last", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in mode:
            time.sleep(600)
        right = "attention_backend" not in arguments or number % 2 == 0
        say(answer(request, tokenizer, right).to_json())


def answer(request: Request, tokenizer: Tokenizer | None, right: bool) -> Answer:
    text = tokenizer.decode(list(request.forced)) if tokenizer and right else ""
    logprobs = tuple(-0.5 if right else -3.0 for _ in request.forced)
    return Answer(request.key, text, logprobs, distributions(request, right) if request.spans else None)


def distributions(request: Request, right: bool) -> Distributions:
    """Geometric ones over the token that is there and those that follow it in the vocabulary."""
    there = np.concatenate([request.prompt[start:end] for start, end in request.spans])
    ids = (there[:, None] + np.arange(request.top)).astype(np.int32)
    row = (
        np.log(0.5) * np.arange(1, request.top + 1) if right else np.log(0.2 * 0.8 ** np.arange(request.top))
    )
    logprobs = np.broadcast_to(row, ids.shape).astype(np.float32)
    return Distributions(
        np.concatenate([ids[:, :1], ids], axis=1), np.concatenate([logprobs[:, :1], logprobs], axis=1)
    )


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
