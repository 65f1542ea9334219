"""`redknot verify-reuse` from its options to its receipt, with an engine that needs no vLLM."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.evals.fake_reuse_engine import FINGERPRINT
from vllm_redknot.cli.commands import verify_reuse as command
from vllm_redknot.reuse.fingerprint import Fingerprint
from vllm_redknot.reuse.receipt import FILE_NAME, cached_path, read_receipt

FAKE = str(Path(__file__).parent.parent / "evals" / "fake_reuse_engine.py")
Run = Callable[..., Any]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the engine by one that answers in this way."""

    def replace(*how: str) -> None:
        monkeypatch.setattr(command, "WORKER", (FAKE, *how))

    replace()
    return replace


@pytest.fixture
def verify(engine: Callable[..., None], model_path: Path, tmp_path: Path, redknot: Run) -> Run:
    """Runs the short form into a folder of its own."""
    del engine
    return partial(
        redknot,
        "verify-reuse",
        model_path,
        "--quick",
        "--run",
        tmp_path / "run",
        "--output",
        tmp_path / "out",
    )


def test_a_kept_budget_gives_a_receipt_with_the_engines_fingerprint(verify: Run, tmp_path: Path) -> None:
    result = verify("--json", "--boundary", "24", "--seed", "3")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    path = tmp_path / "out" / FILE_NAME
    assert document["receipt"] == str(path)
    assert json.loads((tmp_path / "run" / "verify-reuse.json").read_text()) == document
    receipt = read_receipt(path)
    assert receipt.fingerprint == FINGERPRINT
    assert (receipt.policy, receipt.boundary, receipt.seed) == ("boundary", 24, 3)
    assert receipt.asked.model_dump() == command.QUICK
    assert receipt.versions["vllm-redknot"]
    assert json.loads(receipt.model_dump_json())["figures"] == document["figures"]
    assert {figure.n for figure in receipt.figures if figure.position is None} == {8, 6}


def test_a_receipt_for_blend_says_so_and_how_to_serve_with_it(verify: Run, tmp_path: Path) -> None:
    result = verify("--policy", "blend", "--share", "0.25", width=200)
    assert result.exit_code == 0, result.output
    receipt = read_receipt(tmp_path / "out" / FILE_NAME)
    assert (receipt.policy, receipt.boundary, receipt.share) == ("blend", 0, 0.25)
    assert receipt.asked.model_dump() == command.QUICK
    text = " ".join(result.stdout.split())
    assert "Blend of 25.0%: " in text
    assert '"store": "FOLDER", "policy": "blend", "share": 0.25}}' in text
    document = json.loads((tmp_path / "run" / "verify-reuse.json").read_text())
    assert (document["policy"], document["share"]) == ("blend", 0.25)
    told = document["engine"]["settings"]["redknot"]
    assert (told["policy"], told["share"]) == ("blend", 0.25)


def test_the_document_has_the_documented_shape(verify: Run) -> None:
    document = json.loads(verify("--json").stdout)
    assert (document["kind"], document["format"]) == ("redknot.verify-reuse", 1)
    assert (document["policy"], document["boundary"], document["passed"]) == ("boundary", 64, True)
    assert document["share"] is None
    assert 0.5 < document["reused_share"] < 1
    found = {(cell["task"], cell["metric"]) for cell in document["figures"]}
    tokens = {"nll", "kl", "top-1 agreement"}
    assert found == {
        *((task, metric) for task in ("needle", "named") for metric in {"found", *tokens}),
        *((task, metric) for task in ("squad", "hotpotqa") for metric in {"f1", "exact match", *tokens}),
    }
    for cell in document["figures"]:
        assert set(cell) == {
            *("task", "metric", "position", "n", "dense", "reuse", "difference", "within_noise")
        }
        assert cell["position"] in ((None, 0, 1, 2, 3) if cell["task"] in ("needle", "named") else (None,))
        if cell["metric"] == "kl":
            assert cell["dense"] is None
            assert cell["reuse"]["value"] == 0.0
    told = document["engine"]["settings"]["redknot"]
    assert (told["reuse"], told["boundary"], told["store_disk_gib"]) == ("force", 64, 0.0)
    assert "rows" not in told
    assert document["row_schedule"] is None
    assert not Path(told["store"]).exists()


def test_a_run_skips_rows_as_the_option_says_and_says_so(verify: Run) -> None:
    stated = {"ffn_from": 20, "attention_from": 24}
    document = json.loads(verify("--json", "--rows", json.dumps(stated)).stdout)
    assert document["engine"]["settings"]["redknot"]["rows"] == stated
    whole = {**stated, "sink": 4, "recent": 128}
    assert document["row_schedule"] == whole
    assert f"Both answers skip rows: {json.dumps(whole)}." in " ".join(
        verify("--rows", json.dumps(stated), width=300).stdout.split()
    )
    # Answers of one schedule are not taken for those of another.
    other = verify("--rows", "off")
    assert other.exit_code == 1
    assert "belongs to another run" in other.stderr


def test_a_model_that_loses_the_documents_gets_no_receipt_and_is_told_what_failed(
    engine: Callable[..., None], verify: Run, tmp_path: Path
) -> None:
    engine("lost")
    result = verify(width=120)
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert "The budget is not kept: no receipt is written." in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "redknot: no receipt: needle found is 0.000, with everything computed 1.000, and the"
    )
    for told in (
        "needle nll is",
        "named found is",
        "squad f1 is",
        "hotpotqa f1 is",
        "larger --boundary than 64",
    ):
        assert told in line
    document = json.loads((tmp_path / "run" / "verify-reuse.json").read_text())
    assert (document["passed"], document["receipt"]) == (False, None)
    divergence = [cell for cell in document["figures"] if cell["metric"] == "kl"]
    assert all(cell["reuse"]["value"] > 0.1 for cell in divergence)


def test_tables_show_intervals_places_the_budget_and_how_to_serve(verify: Run, tmp_path: Path) -> None:
    text = " ".join(verify(width=160).stdout.split())
    assert "Boundary 64: " in text
    assert re.search(
        r"found 8 1.000 \[1.000, 1.000\] 1.000 \[1.000, 1.000\] \+0.000 \[0.000, 0.000\] noise", text
    )
    assert "place 1 place 2 place 3 place 4" in text
    assert "2/2 of 2" in text
    assert "needle nll" in text
    assert f"The budget is kept. Receipt: {tmp_path / 'out' / FILE_NAME}" in text
    assert "It rests on 6 questions of a data set, too few to see a loss" in text
    assert (
        f'{{"redknot": {{"reuse": "on", "receipt": "{tmp_path / "out" / FILE_NAME}", "store": "FOLDER"'
        in text
    )


def test_the_receipt_goes_beside_the_model_and_where_that_cannot_be_into_the_cache(
    engine: Callable[..., None],
    redknot: Run,
    model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del engine
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model_path.iterdir():
        if path.is_file():
            (folder / path.name).symlink_to(path)
    monkeypatch.setenv("REDKNOT_CACHE_DIR", str(tmp_path / "cache"))
    command_line = ("verify-reuse", folder, "--quick", "--json", "--run", tmp_path / "run")
    first = json.loads(redknot(*command_line).stdout)
    assert first["receipt"] == str(folder / FILE_NAME)
    (folder / FILE_NAME).unlink()
    # A folder in the place of the file cannot be replaced by one, whoever asks.
    (folder / FILE_NAME / "x").mkdir(parents=True)
    second = json.loads(redknot(*command_line).stdout)
    assert second["receipt"] == str(cached_path(tmp_path / "cache", Fingerprint.from_json(FINGERPRINT)))
    assert read_receipt(Path(second["receipt"])).boundary == 64


def test_output_may_name_the_file(verify: Run, tmp_path: Path) -> None:
    document = json.loads(verify("--json", "--output", tmp_path / "deep" / "small.json").stdout)
    assert document["receipt"] == str(tmp_path / "deep" / "small.json")
    assert read_receipt(tmp_path / "deep" / "small.json")


def test_an_interrupted_run_goes_on_where_it_stopped(
    engine: Callable[..., None], verify: Run, tmp_path: Path
) -> None:
    engine("crash")
    broken = verify()
    assert broken.exit_code == 1
    assert "the reuse engine ended with exit status 3 after 1 of" in broken.stderr
    answers = tmp_path / "run" / "answers-reuse.jsonl"
    assert len(answers.read_text().splitlines()) == 3
    engine()
    assert verify().exit_code == 0
    engine("crash")
    # Everything is answered: no engine is started.
    assert verify().exit_code == 0
    other = verify("--boundary", "8")
    assert other.exit_code == 1
    assert "belongs to another run" in other.stderr
    engine()
    assert verify("--boundary", "8", "--restart").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("--length", "9K"), 1, "do not fit, the model's context is 8192: give --length or --documents x"),
        (("--length", "60"), 1, "no question of squad fits with its paragraphs: give another --length"),
        (("--texts", "1"), 2, "--texts 1 with --documents 4 are fewer than 6 cases"),
        (("--block-size", "24"), 2, "--block-size is 24: REDKNOT has pages of a multiple of 16"),
        (("--kv-bytes", "1M"), 1, "--kv-cache-memory-bytes is 1048576 (1 MiB)"),
        (("--needle-recall", "1.5"), 2, "--needle-recall"),
        (("--max-nll-increase", "inf"), 2, "--max-nll-increase"),
        (("--texts", "1001"), 2, "--texts"),
        (("--share", "0.2"), 2, "--share is for --policy blend"),
        (("--policy", "blend", "--boundary", "8"), 2, "--boundary for the other"),
        (("--policy", "blend", "--share", "2"), 2, "--share"),
        (("--policy", "best"), 2, "--policy"),
        (("--policy", "blend", "--no-enforce-eager"), 2, "--policy blend needs --enforce-eager"),
        (("--heads", "none.json"), 1, "none.json"),
        (("--rows", '{"ffn_from": 99}'), 1, "rows.ffn_from is 99: the model's layers are 0 to 29"),
    ],
)
def test_what_cannot_work_is_said_before_any_engine_starts(
    arguments: tuple[str, ...],
    status: int,
    told: str,
    engine: Callable[..., None],
    fails: Callable[..., str],
    model_path: Path,
    tmp_path: Path,
) -> None:
    engine("crash")
    line = fails("verify-reuse", model_path, "--quick", "--run", tmp_path / "run", *arguments, status=status)
    assert told in line
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_hold_results_is_told_before_the_model_is_looked_at(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    command = ("verify-reuse", tmp_path / "no-model", "--run", tmp_path / "run")
    (tmp_path / "file").touch()
    for option in ("--run", "--output"):
        told = fails(*command, option, tmp_path / "file" / "below")
        assert f"{option}: {tmp_path / 'file'} is no folder" in told
    (tmp_path / "out" / FILE_NAME).mkdir(parents=True)
    assert f"{tmp_path / 'out' / FILE_NAME} is a folder" in fails(*command, "--output", tmp_path / "out")
    (tmp_path / "run" / "verify-reuse.json").mkdir(parents=True)
    assert f"{tmp_path / 'run' / 'verify-reuse.json'} is a folder" in fails(*command)


def test_a_variable_that_would_change_the_gates_engine_is_refused(
    fails: Callable[..., str], model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDKNOT_REUSE", "on")
    told = fails("verify-reuse", model_path)
    assert "REDKNOT_REUSE is set, and verify-reuse chooses that itself: unset it" in told


def test_a_folder_without_a_tokenizer_is_refused(
    fails: Callable[..., str], model_path: Path, tmp_path: Path
) -> None:
    shutil.copy(model_path / "config.json", tmp_path)
    told = fails("verify-reuse", tmp_path, "--heads", "all-global", "--run", tmp_path / "run")
    assert "tokenizer.json: no such file" in told


def test_without_vllm_it_says_so(
    fails: Callable[..., str], model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "vLLM is not installed, and verify-reuse asks one of its engines" in fails(
        "verify-reuse", model_path
    )
