"""Speaks the protocol of `reuse/add_worker` without vLLM: each document is stored once, in a list.

Run as a script. Documents that begin with token 9 cannot be stored, and one that begins with 8 kills the process.
"""

import json
import sys
from typing import Any


def main() -> None:
    settings = json.loads(sys.stdin.readline())["engine"]
    documents = []
    while "end" not in (line := json.loads(sys.stdin.readline())):
        documents.append(line["tokens"])
    say({"facts": {"scope": "f" * 32, "dtype": settings["dtype"], "settings": settings}})
    seen: list[Any] = []
    for tokens in documents:
        if tokens[0] == 8:
            print("a library says something last", file=sys.stderr, flush=True)
            sys.exit(3)
        problem = "is not stored (full): the log says more" if tokens[0] == 9 else None
        say({"there": tokens in seen, "bytes": 1000 * len(tokens), "evicted": 0, "problem": problem})
        seen.append(tokens)


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
