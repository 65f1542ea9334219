"""Long runs go on where they stopped, and never on top of what is not their own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.journal import JournalFile, JournalKind, open_journal_file
from vllm_redknot.profiler.errors import ProfilerError
from vllm_redknot.profiler.journal import open_journal


class TornError(Exception):
    """What this kind of journal raises."""


KIND = JournalKind("redknot.test", TornError, "results", "--output")
HEADER = {"model": "abc", "seed": 1}
Lines = dict[str, Any]


@contextmanager
def opened(
    path: Path, header: Mapping[str, Any] = HEADER, restart: bool = False
) -> Iterator[tuple[JournalFile, Lines]]:
    """A journal and what has been taken of it."""
    lines: Lines = {}

    def take(line: Mapping[str, Any]) -> None:
        lines[line["key"]] = line["value"]

    with open_journal_file(path, KIND, header, take, restart) as file:
        yield file, lines


def refused(path: Path, header: Mapping[str, Any] = HEADER) -> str:
    """What the error says; the file is as before."""
    before = path.read_bytes()
    with pytest.raises(TornError) as error, opened(path, header):
        pass
    assert path.read_bytes() == before
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with two lines."""
    path = tmp_path / "journal"
    with opened(path) as (file, _):
        file.add({"key": "one", "value": [1.5, [2]]})
        file.add({"key": "two", "value": {"a": 1}})
    return path


def test_an_interrupted_run_goes_on(path: Path) -> None:
    with opened(path) as (_, lines):
        assert lines == {"one": [1.5, [2]], "two": {"a": 1}}


def test_a_last_line_without_its_end_is_dropped_wherever_it_was_cut(path: Path) -> None:
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with opened(path) as (file, lines):
            assert ("one" in lines) == (cut >= ends[1])
            assert "two" not in lines
            file.add({"key": "three", "value": 3})
        with opened(path) as (_, lines):
            assert lines["three"] == 3


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"model": "other", "seed": 2}, 'model was "abc" and is "other"; seed was 1 and is 2.'),
        ({"model": "abc"}, "seed was 1 and is null."),
        ({**HEADER, "dtype": "float32"}, 'dtype was null and is "float32".'),
    ],
)
def test_another_runs_journal_is_refused_and_the_difference_named(
    path: Path, header: Mapping[str, Any], told: str
) -> None:
    said = refused(path, header)
    assert f"belongs to another run: {told}" in said
    assert "--restart" in said


def test_a_header_is_compared_as_it_is_written(tmp_path: Path) -> None:
    for _ in range(2):
        with opened(tmp_path / "journal", {"windows": (128, 256)}) as (_, lines):
            assert not lines
    assert (tmp_path / "journal").read_text().count("\n") == 1


def test_restart_begins_anew(path: Path) -> None:
    with opened(path, {"model": "other"}, restart=True) as (_, lines):
        assert not lines
    assert path.read_text().count("\n") == 1


@pytest.mark.parametrize(
    "content", [b"hello\n", b"[1]\n", b'{"kind": "other"}\n', b"half a line", b"[" * 100_000 + b"\n"]
)
def test_a_foreign_file_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "is not a file of results: move it away or give another --output" in refused(path)


@pytest.mark.parametrize("damage", [b"\x00", b"{}", b"7", b"[1]", b'{"key": []}', b"[" * 100_000])
def test_a_damaged_line_is_named_with_its_number_and_a_remedy(path: Path, damage: bytes) -> None:
    lines = path.read_bytes().splitlines()
    lines[1] = damage
    path.write_bytes(b"\n".join(lines) + b"\nhalf a line")
    said = refused(path)
    assert "line 2: is damaged" in said
    assert "--restart" in said


def test_two_runs_do_not_write_one_journal(path: Path) -> None:
    with opened(path):
        assert "another process is writing to it" in refused(path)


def test_a_profiling_run_keeps_results_by_name(tmp_path: Path) -> None:
    path = tmp_path / "heads.json.journal"
    # As written by every release.
    path.write_text(
        '{"kind": "redknot.profile.journal", "format": 1, "seed": 0}\n{"key": "a", "result": [1]}\n'
    )
    with open_journal(path, {"seed": 0}) as journal:
        journal.add("b", {"loss": 0.5})
        assert (journal.get("a"), journal.get("b"), journal.get("c")) == ([1], {"loss": 0.5}, None)
    assert path.read_text().splitlines()[-1] == '{"key": "b", "result": {"loss": 0.5}}'
    with pytest.raises(ProfilerError, match="seed was 0 and is 1"), open_journal(path, {"seed": 1}):
        pass
