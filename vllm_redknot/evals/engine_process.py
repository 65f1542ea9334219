"""Runs `engine_worker` in a process group of its own: its crash is a sentence, and nothing outlives the caller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

WORKER: Final = ("-m", "vllm_redknot.evals.engine_worker")
"""What the interpreter is told to run."""
LAST_LINES: Final = 3
SECONDS_TO_STOP: Final = 10.0


class EngineError(RuntimeError):
    """An engine that did not start, or died: which, how, its last words, and where its log lies."""


class Asked(Protocol):
    """A request: anything that is a line of JSON."""

    def to_json(self) -> dict[str, Any]:
        """The line."""


@contextmanager
def engine_process(
    name: str,
    arguments: Mapping[str, Any],
    requests: Sequence[Asked],
    log: Path,
    worker: Sequence[str] = WORKER,
) -> Iterator[Iterator[dict[str, Any]]]:
    """An engine at work: gives its lines, facts first, then an answer per request. What it logs is appended to `log`.

    Raises:
        EngineError: From the iterator: the engine failed.
    """
    # -P: the working directory is no place to import from. The session keeps Ctrl-C of the terminal from the engine.
    command = [sys.executable, "-P", *worker]
    with (
        log.open("ab") as sink,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield _replies(process, name, arguments, requests, log)
        finally:
            _stop(process)


def _replies(
    process: subprocess.Popen[str],
    name: str,
    arguments: Mapping[str, Any],
    requests: Sequence[Asked],
    log: Path,
) -> Iterator[dict[str, Any]]:
    assert process.stdin is not None
    assert process.stdout is not None
    # A process that is gone already is reported below, by its exit status.
    with suppress(BrokenPipeError):
        lines = (request.to_json() for request in requests)
        for line in chain(({"engine": arguments},), lines, ({"end": True},)):
            process.stdin.write(json.dumps(line) + "\n")
        process.stdin.flush()
    answered = 0
    for text in process.stdout:
        reply: dict[str, Any] = json.loads(text)
        if "error" in reply:
            raise EngineError(f"the {name} engine failed: {reply['error']} (log: {log})")
        answered += "facts" not in reply
        yield reply
        if answered == len(requests):
            return
    status = process.wait()
    died = f"died of {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise EngineError(
        f"the {name} engine {died} after {answered} of {len(requests)} answers: {' | '.join(said[-LAST_LINES:])}"
        f" (log: {log})"
    )


def _stop(process: subprocess.Popen[str]) -> None:
    """End the whole group: an engine may have started workers."""
    with suppress(BrokenPipeError):
        if process.stdin is not None:
            process.stdin.close()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_STOP)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
