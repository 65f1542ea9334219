"""Results of a profiling run by name, kept on disk so that an interrupted run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vllm_redknot.journal import JournalFile, JournalKind, open_journal_file
from vllm_redknot.profiler.errors import ProfilerError

PROFILE: Final = JournalKind("redknot.profile.journal", ProfilerError, "results", "--output")


class Journal:
    """Results so far by key, and a way to add to them. Get one from `open_journal`."""

    def __init__(self, results: Mapping[str, Any], file: JournalFile) -> None:
        self._results, self._file = results, file

    def get(self, key: str) -> Any:
        """The result of that name, or None."""
        return self._results.get(key)

    def add(self, key: str, result: Any) -> None:
        """Keep a result; it is in the file when this returns."""
        self._file.add({"key": key, "result": result})


@contextmanager
def open_journal(path: Path, header: Mapping[str, Any], restart: bool = False) -> Iterator[Journal]:
    """The journal in `path` of the run that `header` describes; made where missing, emptied with `restart`.

    Raises:
        ProfilerError: It is damaged, of another program or another run, or another process is writing to it.
        OSError: It cannot be read or written.
    """
    results: dict[str, Any] = {}

    def take(line: Mapping[str, Any]) -> None:
        results[line["key"]] = line["result"]

    with open_journal_file(path, PROFILE, header, take, restart) as file:
        yield Journal(results, file)
