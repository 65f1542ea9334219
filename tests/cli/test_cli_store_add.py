"""`redknot store add` from its options to its lines, with an engine that needs no vLLM."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from tests.cli.conftest import Run, WriteModel
from vllm_redknot.cli.commands import store_add

FAKE = (str(Path(__file__).parent / "fake_add_worker.py"),)
Fails = Callable[..., str]
WriteText = Callable[[str, str], Path]


@pytest.fixture
def model(write_model: WriteModel) -> Path:
    """A model of a few layers, with a context of 16384 tokens and a tokenizer of the words w0 to w99."""
    folder = write_model()
    made = Tokenizer(WordLevel({f"w{number}": number for number in range(100)}, unk_token="w0"))
    made.pre_tokenizer = Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> WriteText:
    def write(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    return write


@pytest.fixture
def adding(monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path, redknot: Run) -> Callable[..., Any]:
    """Adds files to a store, with the stand-in for an engine."""
    monkeypatch.setattr(store_add, "WORKER", FAKE)
    command = ("store", "add", "--model", model, "--store", tmp_path / "store", "--heads", "all-global")
    return partial(redknot, *command)


def words(first: int, count: int = 70) -> str:
    return " ".join(f"w{(first + number) % 100}" for number in range(count))


def test_each_file_has_a_line_with_its_tokens_and_bytes(
    adding: Callable[..., Any], text: WriteText, tmp_path: Path
) -> None:
    files = [text("a.txt", words(1)), text("b.txt", words(2, 80)), text("again.txt", words(1))]
    result = adding(*files, width=200)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        f"{files[0]}: 70 tokens, 68.36 KiB, stored",
        f"{files[1]}: 80 tokens, 78.12 KiB, stored",
        f"{files[2]}: 70 tokens, 68.36 KiB, already there",
        "2 stored, 1 already there, 0 skipped.",
    ]
    assert ((tmp_path / "store").stat().st_mode & 0o777) == 0o700


def test_the_engine_is_asked_for_what_a_server_would_compute(
    adding: Callable[..., Any], text: WriteText, tmp_path: Path
) -> None:
    result = adding(
        text("a.txt", words(1, 900)),
        *(
            "--dtype",
            "float16",
            "--min-reuse",
            "100",
            "--max-bytes",
            "1GiB",
            "--json",
        ),
    )
    document = json.loads(result.stdout)
    settings = document["settings"]
    assert (settings["max_model_len"], settings["dtype"]) == (901, "float16")
    assert settings["attention_backend"] == "REDKNOT"
    assert settings["enable_prefix_caching"] is False
    redknot = settings["additional_config"]["redknot"]
    assert redknot.pop("store_memory_gib") > 0
    assert redknot == {
        **{"heads": "all-global", "min_reuse": 100, "reuse": "force", "capture": "first"},
        **{"store": str(tmp_path / "store"), "store_disk_gib": 1.0},
    }
    assert (document["stored"], document["already_there"], document["skipped"]) == (1, 0, 0)
    (row,) = document["files"]
    assert row == {
        **{"file": str(tmp_path / "a.txt"), "state": "stored", "tokens": 900, "bytes": 900_000},
        **{"evicted": 0, "problem": None},
    }


def test_rows_are_skipped_as_the_option_says(adding: Callable[..., Any], text: WriteText) -> None:
    document = json.loads(adding(text("a.txt", words(1)), "--rows", '{"ffn_from": 1}', "--json").stdout)
    assert document["settings"]["additional_config"]["redknot"]["rows"] == {"ffn_from": 1}
    document = json.loads(adding(text("b.txt", words(2)), "--rows", "off", "--json").stdout)
    assert document["settings"]["additional_config"]["redknot"]["rows"] == "off"


def test_a_store_for_blend_is_filled_by_an_engine_for_blend(
    adding: Callable[..., Any], text: WriteText
) -> None:
    result = adding(text("a.txt", words(1)), "--policy", "blend", "--json")
    settings = json.loads(result.stdout)["settings"]
    assert settings["additional_config"]["redknot"]["policy"] == "blend"
    assert settings["enforce_eager"] is True


def test_files_that_cannot_be_used_are_named_and_the_others_stored(
    adding: Callable[..., Any], text: WriteText, tmp_path: Path
) -> None:
    files = [
        text("short.txt", words(1, 63)),
        text("good.txt", words(1)),
        text("long.txt", words(1, 16384)),
        text("empty.txt", ""),
        tmp_path / "missing.txt",
        text("full.txt", words(9)),
    ]
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    result = adding(*files, tmp_path / "bytes.txt", "--json")
    assert result.exit_code == 1
    rows = json.loads(result.stdout)["files"]
    states = {Path(row["file"]).name: row["state"] for row in rows}
    assert states.pop("good.txt") == "stored"
    assert set(states.values()) == {"skipped"}
    problems = [row["problem"] for row in rows if row["state"] == "skipped"]
    assert problems[0].startswith("has 63 tokens: documents of less than 64")
    assert problems[1].startswith("has 16384 tokens: give at most 16383")
    assert problems[2] == "is empty"
    assert problems[3].startswith("cannot be read: No such file")
    assert "(full)" in problems[4]
    assert problems[5].startswith("is no UTF-8 text")
    assert "log is" in result.stderr


def test_without_a_usable_file_no_engine_is_started(
    adding: Callable[..., Any], text: WriteText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_add, "WORKER", ("-c", "raise SystemExit(3)"))
    result = adding(text("empty.txt", ""))
    assert result.exit_code == 1
    assert "is empty" in result.stdout
    assert "0 stored, 0 already there, 1 skipped." in result.stdout
    assert not (tmp_path / "store").exists()


def test_an_engine_that_dies_is_one_line_with_what_was_done(
    adding: Callable[..., Any], text: WriteText
) -> None:
    result = adding(text("a.txt", words(1)), text("b.txt", words(8)))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "ended with exit status 3 after 1 of 2 answers: a library says something last" in line
    assert "what was stored before is kept: 1 of 2" in line


def test_a_directory_that_others_use_is_refused_before_anything_is_computed(
    adding: Callable[..., Any], text: WriteText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_add, "WORKER", ("-c", "raise SystemExit(3)"))
    (tmp_path / "store").mkdir(mode=0o755)
    (tmp_path / "store" / "notes.txt").write_text("mine")
    result = adding(text("a.txt", words(1)))
    assert result.exit_code == 1
    assert "holds other files, such as 'notes.txt'" in result.stderr


def test_a_variable_that_would_send_segments_elsewhere_is_refused(
    adding: Callable[..., Any], text: WriteText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDKNOT_STORE", str(tmp_path / "elsewhere"))
    result = adding(text("a.txt", words(1)))
    assert result.exit_code == 1
    assert f"REDKNOT_STORE is set to {tmp_path / 'elsewhere'}" in result.stderr
    assert result.stdout == ""


def test_a_model_that_is_none_is_one_line(fails: Fails, text: WriteText, model: Path, tmp_path: Path) -> None:
    command = ("store", "add", text("a.txt", words(1)), "--store", tmp_path / "store", "--model")
    assert "config.json" in fails(*command, tmp_path / "nowhere")
    (model / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in fails(*command, model, "--heads", "all-global")
    assert "--model" in fails("store", "add", text("a.txt", ""), "--store", tmp_path, status=2)
    assert "FILES" in fails("store", "add", "--model", model, "--store", tmp_path, status=2)
