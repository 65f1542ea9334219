"""A whole evaluation: engines one after the other, each resumed from its file, then the document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vllm_redknot.evals.answer_file import open_answers
from vllm_redknot.evals.engine_process import WORKER, engine_process
from vllm_redknot.evals.fingerprints import requests_fingerprint
from vllm_redknot.evals.requests import Answer, Request

STOCK: Final = "stock"
REDKNOT: Final = "REDKNOT"
ENGINES: Final = {"heads": "heads", "rows": "rows", "redknot": REDKNOT}
"""Configurations besides stock, and what their engines are called; in an ablation REDKNOT is the one with both."""
Told = Callable[[str, int, int], None]
"""Told after every answer: engine, answers so far, answers in all."""


@dataclass(frozen=True)
class Engine:
    """One engine: its name, the arguments of `vllm.LLM`, and all that its answers depend on besides the requests."""

    name: str
    arguments: Mapping[str, Any]
    identity: Mapping[str, Any]


@dataclass(frozen=True)
class Answered:
    """All answers of an engine by key, and what the engine said of itself."""

    answers: Mapping[str, Answer]
    facts: Mapping[str, Any]


def answers_path(folder: Path, engine: str) -> Path:
    """Where an engine's answers are kept."""
    return folder / f"answers-{engine.lower()}.jsonl"


def log_path(folder: Path, engine: str) -> Path:
    """Where an engine's log goes."""
    return folder / f"{engine.lower()}.log"


def answer_all(
    engine: Engine,
    requests: Sequence[Request],
    folder: Path,
    told: Told,
    worker: Sequence[str] = WORKER,
) -> Answered:
    """Ask what is not answered yet; each answer is in its file before the next is asked for.

    Raises:
        AnswerFileError: The file in `folder` is damaged, or another run's.
        EngineError: The engine failed. What it answered is kept.
        OSError: `folder` cannot be written.
    """
    keys = {request.key for request in requests}
    if len(keys) != len(requests):
        raise ValueError("two requests have one key")
    header = {"engine": engine.name, **engine.identity, "requests": requests_fingerprint(requests)}
    with open_answers(answers_path(folder, engine.name), header, keys) as file:
        told(engine.name, len(file.answers), len(requests))
        pending = [request for request in requests if request.key not in file.answers]
        if pending:
            with engine_process(
                engine.name, engine.arguments, pending, log_path(folder, engine.name), worker
            ) as replies:
                for reply in replies:
                    file.add(reply)
                    told(engine.name, len(file.answers), len(requests))
        return Answered(file.answers, file.facts)
