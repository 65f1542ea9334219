"""Speaks the protocol of `reuse_worker` without vLLM: right answers, but for reused ones where the argument is "lost".

Run as a script. "crash" ends after the first answer.
"""

import json
import sys
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vllm_redknot.evals.requests import Answer, Distributions
from vllm_redknot.evals.reuse_requests import ReuseRequest, reuse_request_from_json

FINGERPRINT = {
    **{"weights": "a" * 32, "config": "b" * 32, "dtype": "bfloat16", "rope": "{}", "heads": "c" * 16},
    **{"rows": "", "tp_rank": 0, "tp_size": 1, "version": 1, "model": "fake"},
}


def main() -> None:
    arguments = json.loads(sys.stdin.readline())["engine"]
    requests = []
    while "end" not in (line := json.loads(sys.stdin.readline())):
        requests.append(reuse_request_from_json(line))
    tokenizer = Tokenizer.from_file(f"{arguments['model']}/tokenizer.json")
    say(
        {
            "facts": {
                "dtype": "bfloat16",
                "settings": arguments["additional_config"],
                "fingerprint": FINGERPRINT,
            }
        }
    )
    for number, request in enumerate(requests):
        if sys.argv[1:] == ["crash"] and number == 1:
            sys.exit(3)
        right = request.policy is None or sys.argv[1:] != ["lost"]
        say(answer(request, tokenizer, right).to_json())


def answer(request: ReuseRequest, tokenizer: Tokenizer, right: bool) -> Answer:
    text = tokenizer.decode(list(request.forced)) if right else "nothing"
    there = np.array(request.forced)[:, None]
    ids = (there + np.arange(request.top)).astype(np.int32)
    row = (
        np.log(0.5) * np.arange(1, request.top + 1) if right else np.log(0.2 * 0.8 ** np.arange(request.top))
    )
    logprobs = np.broadcast_to(row, ids.shape).astype(np.float32)
    scored = Distributions(
        np.concatenate([ids[:, :1], ids], axis=1), np.concatenate([logprobs[:, :1], logprobs], axis=1)
    )
    return Answer(request.key, text, tuple(scored.logprobs[:, 0].tolist()), scored)


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
