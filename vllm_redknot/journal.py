"""Results of a long run on disk, one JSON object a line, so that an interrupted run goes on where it stopped.

The first line says what the results belong to. A last line without its end was being written when the run stopped, and
is dropped. Anything else that is not as written is an error: nothing is guessed, and nothing thrown away.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Take = Callable[[Mapping[str, Any]], None]
"""Told each line; raises what Python raises (ValueError, KeyError, ...) for one that is not as it was written."""


@dataclass(frozen=True)
class JournalKind:
    """Whose journal a file is.

    Attributes:
        name, format: in its first line.
        error: what is raised for a journal that cannot be gone on with: which, why, and the remedy.
        holds, place: how errors call its lines, and what another place for them is another of.
    """

    name: str
    error: type[Exception]
    holds: str
    place: str
    format: int = 1


class JournalFile:
    """The lines of one run, and a way to add to them. Get one from `open_journal_file`."""

    def __init__(self, path: Path, file: IO[bytes], kind: JournalKind, take: Take) -> None:
        self.path = path
        self._file, self._kind, self._take = file, kind, take

    def add(self, line: Mapping[str, Any]) -> None:
        """Take a line and keep it; it is in the file when this returns."""
        self._take(line)
        self._file.write(_encoded(line))
        self._file.flush()

    def load(self, header: Mapping[str, Any]) -> None:
        """Take every line that is there, or begin.

        Raises:
            The kind's error: The file is damaged, of another program, or of a run with another header.
        """
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        first = _encoded({"kind": self._kind.name, "format": self._kind.format, **header})
        lines = whole.splitlines()
        if lines:
            self._check_header(lines[0], json.loads(first))
        elif not first.startswith(content):
            raise self._foreign()
        for number, text in enumerate(lines[1:], start=2):
            try:
                self._take(_decoded(text))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._kind.error(
                    f"{self.path}, line {number}: is damaged ({type(error).__name__}: {error}): delete that line to"
                    " have it computed again, or start anew with --restart"
                ) from error
        self._file.seek(len(whole))
        self._file.truncate()
        if not lines:
            self._file.write(first)
            self._file.flush()

    def _check_header(self, text: bytes, wanted: Mapping[str, Any]) -> None:
        try:
            found = _decoded(text)
        except ValueError as error:
            raise self._foreign() from error
        if found.get("kind") != self._kind.name:
            raise self._foreign()
        differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        if differing:
            told = "; ".join(
                f"{key} was {_short(found.get(key))} and is {_short(wanted.get(key))}" for key in differing
            )
            raise self._kind.error(
                f"{self.path}: belongs to another run: {told}. Give the options and the installation of that run,"
                f" another {self._kind.place}, or --restart to throw its {self._kind.holds} away"
            )

    def _foreign(self) -> Exception:
        return self._kind.error(
            f"{self.path}: is not a file of {self._kind.holds}: move it away or give another {self._kind.place}"
        )


@contextmanager
def open_journal_file(
    path: Path, kind: JournalKind, header: Mapping[str, Any], take: Take, restart: bool = False
) -> Iterator[JournalFile]:
    """The journal in `path` of the run that `header` describes; made where missing, emptied with `restart`.

    Raises:
        The kind's error: As `JournalFile.load`, or another process is writing to it.
        OSError: It cannot be read or written.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise kind.error(
                f"{path}: another process is writing to it: wait for it, or give another {kind.place}"
            ) from error
        if restart:
            file.truncate()
        opened = JournalFile(path, file, kind, take)
        opened.load(header)
        yield opened


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def _decoded(text: bytes) -> dict[str, Any]:
    """Raises ValueError for what is no JSON object."""
    try:
        line = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    return line


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
