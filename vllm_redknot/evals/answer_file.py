"""The answers of one engine, kept on disk so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vllm_redknot.evals.requests import Answer, answer_from_json
from vllm_redknot.journal import JournalKind, open_journal_file


class AnswerFileError(Exception):
    """A file of answers that cannot be gone on with: which, why, and the remedy."""


ANSWERS: Final = JournalKind("redknot.eval.answers", AnswerFileError, "answers", "folder", format=2)


@dataclass(frozen=True)
class AnswerFile:
    """Answers so far by key, and what the engine said of itself. Get one from `open_answers`.

    `add` takes an engine's line, an answer or its facts; it is in the file when that returns.
    """

    answers: Mapping[str, Answer]
    facts: Mapping[str, Any]
    add: Callable[[Mapping[str, Any]], None]


@contextmanager
def open_answers(path: Path, header: Mapping[str, Any], keys: Collection[str]) -> Iterator[AnswerFile]:
    """The answers in `path` to the requests `keys` of the run that `header` describes; the file is made if missing.

    Raises:
        AnswerFileError: The file is damaged, of another program or another run, answers what is not among `keys`, or
            another process is writing to it.
        OSError: It cannot be read or written.
    """
    answers: dict[str, Answer] = {}
    facts: dict[str, Any] = {}

    def take(line: Mapping[str, Any]) -> None:
        if "facts" in line:
            latest = dict(line["facts"])
            facts.clear()
            facts.update(latest)
            return
        answer = answer_from_json(line)
        answers[answer.key] = answer

    with open_journal_file(path, ANSWERS, header, take) as file:
        if unknown := answers.keys() - keys:
            raise AnswerFileError(
                f"{path}: answers {min(unknown)!r}, which this run does not ask: start anew with --restart"
            )
        yield AnswerFile(answers, facts, file.add)
