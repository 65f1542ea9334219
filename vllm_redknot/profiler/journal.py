"""Results of a long run on disk, one line each, so that an interrupted run goes on where it stopped.

The first line says what the results belong to. A last line without its end was being written when the run stopped, and
is dropped. Anything else that is not as written is an error: nothing is guessed, and nothing thrown away.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from vllm_redknot.profiler.errors import ProfilerError

KIND: Final = "redknot.profile.journal"
FORMAT: Final = 1


class Journal:
    """Results so far by key, and a way to add to them. Get one from `open_journal`."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file
        self._results: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        """The result of that name, or None."""
        return self._results.get(key)

    def add(self, key: str, result: Any) -> None:
        """Keep a result; it is in the file when this returns."""
        self._results[key] = result
        self._file.write(_encoded({"key": key, "result": result}))
        self._file.flush()

    def load(self, header: Mapping[str, Any]) -> None:
        """Read what is there, or begin. Raises ProfilerError where the file is damaged or of another run."""
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        wanted = json.loads(_encoded({"kind": KIND, "format": FORMAT, **header}))
        lines = whole.splitlines()
        if content and not lines and not _encoded(wanted).startswith(content):
            raise self._foreign()
        self._file.seek(len(whole))
        self._file.truncate()
        if not lines:
            self._file.write(_encoded(wanted))
            self._file.flush()
            return
        self._check_header(lines[0], wanted)
        for number, text in enumerate(lines[1:], start=2):
            try:
                line = json.loads(text)
                self._results[line["key"]] = line["result"]
            except (ValueError, KeyError, TypeError) as error:
                raise ProfilerError(
                    f"{self.path}, line {number} is damaged ({error}): delete that line to have it computed again,"
                    " or start anew with --restart"
                ) from error

    def _check_header(self, text: bytes, wanted: Mapping[str, Any]) -> None:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise self._foreign() from error
        if not isinstance(found, dict) or found.get("kind") != KIND:
            raise self._foreign()
        for key in sorted({*wanted, *found}):
            if found.get(key) != wanted.get(key):
                raise ProfilerError(
                    f"{self.path} is of another run: {key} was {json.dumps(found.get(key))[:120]} and is"
                    f" {json.dumps(wanted.get(key))[:120]}: give the options and the model of that run, or --restart"
                )

    def _foreign(self) -> ProfilerError:
        return ProfilerError(
            f"{self.path} is no journal of `redknot profile`: move it away, or give --restart"
        )


@contextmanager
def open_journal(path: Path, header: Mapping[str, Any], restart: bool = False) -> Iterator[Journal]:
    """The journal in `path` of the run that `header` describes; made where missing, emptied with `restart`.

    Raises:
        ProfilerError: As `Journal.load`, or another process is writing to it.
        OSError: It cannot be read or written.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ProfilerError(f"{path}: another run is writing to it: wait for it to end") from error
        if restart:
            file.truncate()
        journal = Journal(path, file)
        journal.load(header)
        yield journal


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"
