"""Runs go on where they stopped, and never on top of something else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_redknot.evals.answer_file import AnswerFileError, open_answers
from vllm_redknot.evals.requests import Answer, Distributions

HEADER = {"engine": "stock", "model": "ab", "seed": 0}
KEYS = {"a", "b", "c"}


def line(key: str) -> dict[str, Any]:
    scored = Distributions(np.array([[1, 2]], np.int32), np.array([[-0.5, -1.25]], np.float32))
    return Answer(key, "text", (-1.5,), scored).to_json()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the facts of an engine and two answers."""
    path = tmp_path / "answers.jsonl"
    with open_answers(path, HEADER, KEYS) as file:
        assert not file.answers
        file.add({"facts": {"dtype": "bfloat16"}})
        file.add(line("a"))
        file.add(line("b"))
    return path


def refused(path: Path, header: dict[str, Any] = HEADER, keys: set[str] = KEYS) -> str:
    before = path.read_bytes()
    with pytest.raises(AnswerFileError) as error, open_answers(path, header, keys):
        pass
    assert path.read_bytes() == before
    assert str(path) in str(error.value)
    return str(error.value)


def test_answers_are_read_back_as_they_were_written(path: Path) -> None:
    with open_answers(path, HEADER, KEYS) as file:
        assert set(file.answers) == {"a", "b"}
        assert file.facts == {"dtype": "bfloat16"}
        found = file.answers["b"]
        assert (found.text, found.forced_logprobs) == ("text", (-1.5,))
        assert found.scored is not None
        assert found.scored.ids.tolist() == [[1, 2]]
        assert found.scored.logprobs.tolist() == [[-0.5, -1.25]]


@pytest.mark.parametrize("lost", [1, 10, 60])
def test_a_last_line_that_broke_off_is_dropped_and_written_again(path: Path, lost: int) -> None:
    path.write_bytes(path.read_bytes()[:-lost])
    with open_answers(path, HEADER, KEYS) as file:
        assert set(file.answers) == {"a"}
        file.add(line("b"))
        file.add(line("c"))
    with open_answers(path, HEADER, KEYS) as file:
        assert set(file.answers) == KEYS


def test_a_header_that_broke_off_is_written_again(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])
    with open_answers(path, HEADER, KEYS) as file:
        assert not file.answers
    assert json.loads(path.read_text())["engine"] == "stock"


@pytest.mark.parametrize(
    "damage",
    [
        "{}",
        "nonsense",
        "[1]",
        '{"key": "a"}',
        '{"key": 1, "text": "", "forced_logprobs": [], "scored": null}',
        "7",
    ],
)
def test_a_damaged_line_is_named_with_its_number_and_a_remedy(path: Path, damage: str) -> None:
    lines = path.read_text().splitlines()
    lines[2] = damage
    path.write_text("\n".join(lines) + "\n")
    told = refused(path)
    assert "line 3: is damaged" in told
    assert "--restart" in told


def test_damaged_distributions_are_noticed(path: Path) -> None:
    lines = path.read_text().splitlines()
    answer = json.loads(lines[2])
    answer["scored"]["shape"] = [2, 2]
    lines[2] = json.dumps(answer)
    path.write_text("\n".join(lines) + "\n")
    assert "line 3: is damaged" in refused(path)


@pytest.mark.parametrize(
    "content", ["some notes", "some notes\nmore\n", '{"kind": "redknot.bench"}\n', "[]\n"]
)
def test_a_foreign_file_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    assert "is not a file of answers" in refused(path)


def test_another_run_is_told_by_what_differs(path: Path) -> None:
    told = refused(path, {**HEADER, "seed": 1, "model": "cd"})
    assert 'model was "ab" and is "cd"; seed was 0 and is 1.' in told
    assert "--restart" in told
    assert "another folder" in told


def test_an_answer_to_what_is_not_asked_is_refused(path: Path) -> None:
    assert "answers 'b', which this run does not ask" in refused(path, keys={"a"})


def test_two_runs_cannot_write_to_one_file(path: Path) -> None:
    with open_answers(path, HEADER, KEYS):
        assert "another process is writing to it" in refused(path)
