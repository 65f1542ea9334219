"""The answers of one engine on disk, one per line, so that an interrupted run goes on where it stopped.

The first line says what the answers belong to. A last line without its end was being written when the run stopped, and
is dropped. Anything else that is not as written is an error: nothing is guessed, and nothing thrown away.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from vllm_redknot.evals.requests import Answer, answer_from_json

KIND: Final = "redknot.eval.answers"
FORMAT: Final = 1


class AnswerFileError(Exception):
    """A file of answers that cannot be gone on with: which, why, and the remedy."""


class AnswerFile:
    """Answers so far, and a way to add to them. Get one from `open_answers`."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self.answers: dict[str, Answer] = {}
        self.facts: dict[str, Any] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Keep an engine's line, an answer or its facts; it is in the file when this returns."""
        self._take(line)
        self._file.write(_encoded(line))
        self._file.flush()

    def load(self, header: Mapping[str, Any], keys: Collection[str]) -> None:
        """Read what is there, or begin.

        Raises:
            AnswerFileError: The file is damaged, of another program, or of a run with another header.
        """
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        first = _encoded({"kind": KIND, "format": FORMAT, **header})
        lines = whole.splitlines()
        if lines:
            self._check_header(lines[0], json.loads(first))
        elif not first.startswith(content):
            raise self._foreign()
        self._file.seek(len(whole))
        self._file.truncate()
        if not lines:
            self._file.write(first)
            self._file.flush()
        for number, text in enumerate(lines[1:], start=2):
            try:
                self._take(json.loads(text))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise AnswerFileError(
                    f"{self._path}, line {number}: is damaged ({type(error).__name__}: {error}): delete that line to"
                    " have it answered again, or start anew with --restart"
                ) from error
        if unknown := self.answers.keys() - keys:
            raise AnswerFileError(
                f"{self._path}: answers {min(unknown)!r}, which this run does not ask: start anew with --restart"
            )

    def _take(self, line: Mapping[str, Any]) -> None:
        if "facts" in line:
            self.facts = dict(line["facts"])
            return
        answer = answer_from_json(line)
        self.answers[answer.key] = answer

    def _check_header(self, text: bytes, wanted: Mapping[str, Any]) -> None:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise self._foreign() from error
        if not isinstance(found, dict) or found.get("kind") != KIND:
            raise self._foreign()
        differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        if differing:
            told = "; ".join(
                f"{key} was {_short(found.get(key))} and is {_short(wanted.get(key))}" for key in differing
            )
            raise AnswerFileError(
                f"{self._path}: belongs to another run: {told}. Give the options and the installation of that run,"
                " another folder, or --restart to throw its answers away"
            )

    def _foreign(self) -> AnswerFileError:
        return AnswerFileError(f"{self._path}: is not a file of answers: move it away or give another folder")


@contextmanager
def open_answers(path: Path, header: Mapping[str, Any], keys: Collection[str]) -> Iterator[AnswerFile]:
    """The answers in `path` to the requests `keys` of the run that `header` describes; the file is made if missing.

    Raises:
        AnswerFileError: As `AnswerFile.load`, or another process is writing to it.
        OSError: It cannot be read or written.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AnswerFileError(
                f"{path}: another process is writing to it: wait for it, or give another folder"
            ) from error
        opened = AnswerFile(path, file)
        opened.load(header, keys)
        yield opened


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
