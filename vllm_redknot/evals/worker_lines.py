"""The frame of a process that is one vLLM engine: lines of JSON in, lines of JSON out, and no life without a parent."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

Parsed = TypeVar("Parsed")
Line = dict[str, Any]


def answer_lines(
    parse: Callable[[Line], Parsed], serve: Callable[[Line, list[Parsed]], Iterator[Line]]
) -> None:
    """Read settings and requests from stdin, and write what `serve` says of them to stdout.

    Lines on stdin: {"engine": settings}, the requests, {"end": true}. Lines on stdout: those of `serve`, or
    {"error": ...}. stdin stays open while the engine is wanted: when it closes, as it does when the parent dies, the
    process ends at once.
    """
    # Libraries print what they like to stdout: that goes to the log, and answers to a descriptor of their own.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        settings, requests = _read(sys.stdin, parse)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        # One process, so that ending it leaves nothing behind; vLLM reads this when it is imported.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            for line in serve(settings, requests):
                answers.write(json.dumps(line) + "\n")
                answers.flush()
        except Exception as error:
            answers.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
            answers.flush()
            raise


def _read(lines: IO[str], parse: Callable[[Line], Parsed]) -> tuple[Line, list[Parsed]]:
    settings = json.loads(lines.readline())["engine"]
    requests: list[Parsed] = []
    for text in iter(lines.readline, ""):
        line = json.loads(text)
        if "end" in line:
            return settings, requests
        requests.append(parse(line))
    raise EOFError("the list of requests broke off")


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
