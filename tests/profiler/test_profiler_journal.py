"""The journal of a run: goes on, and never takes what is not its own."""

from pathlib import Path

import pytest

from vllm_redknot.profiler.errors import ProfilerError
from vllm_redknot.profiler.journal import open_journal

HEADER = {"model": "abc", "seed": 1}


def filled(path: Path) -> Path:
    with open_journal(path, HEADER) as journal:
        journal.add("one", [1.5, [2]])
        journal.add("two", {"a": 1})
    return path


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    with open_journal(filled(tmp_path / "j"), HEADER) as journal:
        assert journal.get("one") == [1.5, [2]]
        assert journal.get("three") is None


def test_a_last_line_without_its_end_is_dropped_wherever_it_was_cut(tmp_path: Path) -> None:
    whole = filled(tmp_path / "j").read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        with open_journal(path, HEADER) as journal:
            assert (journal.get("one") is not None) == (cut >= ends[1])
            journal.add("three", 3)
        with open_journal(path, HEADER) as journal:
            assert journal.get("three") == 3


@pytest.mark.parametrize("header", [{"model": "other", "seed": 1}, {"model": "abc"}])
def test_another_runs_journal_is_refused_and_the_difference_named(
    tmp_path: Path, header: dict[str, object]
) -> None:
    with (
        pytest.raises(ProfilerError, match=r"of another run: (model was|seed was).*--restart"),
        open_journal(filled(tmp_path / "j"), header),
    ):
        pass


def test_restart_begins_anew(tmp_path: Path) -> None:
    with open_journal(filled(tmp_path / "j"), {"model": "other"}, restart=True) as journal:
        assert journal.get("one") is None


@pytest.mark.parametrize("content", [b"hello\n", b"[1]\n", b'{"kind": "other"}\n', b"half a line"])
def test_a_foreign_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(ProfilerError, match="no journal"), open_journal(path, HEADER):
        pass
    assert path.read_bytes() == content


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\x00" + lines[1][1:] + lines[2])
    with pytest.raises(ProfilerError, match="line 2 is damaged"), open_journal(path, HEADER):
        pass


def test_two_runs_do_not_write_one_journal(tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    with (
        open_journal(path, HEADER),
        pytest.raises(ProfilerError, match="another run is writing"),
        open_journal(path, HEADER),
    ):
        pass
