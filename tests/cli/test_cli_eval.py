"""`redknot eval` from its options to its tables, with engines that need no vLLM."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.cli.commands import eval as command
from vllm_redknot.evals.engine_process import WORKER
from vllm_redknot.evals.run import answer_all

FAKE = (str(Path(__file__).parent.parent / "evals" / "fake_engine.py"),)
Run = Callable[..., Any]
NEEDLE = ("--suite", "needle")
SMALL = ("--lengths", "600,1K", "--limit", "6", "--window", "128")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces vLLM; the names of the engines asked, in order."""
    names: list[str] = []

    def ask(engine: Any, *arguments: Any) -> Any:
        names.append(engine.name)
        return answer_all(engine, *arguments, FAKE)

    monkeypatch.setattr(command, "answer_all", ask)
    return names


@pytest.fixture
def ready(started: list[str], model_path: Path, tmp_path: Path, redknot: Run) -> Run:
    """Runs a small evaluation into a folder of its own."""
    del started
    return partial(redknot, "eval", model_path, "--output", tmp_path / "run", *SMALL)


def test_the_document_has_the_documented_shape(ready: Run, started: list[str], tmp_path: Path) -> None:
    result = ready("--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert started == ["stock", "REDKNOT"]
    assert json.loads((tmp_path / "run" / "eval.json").read_text()) == document
    assert (document["kind"], document["format"], document["seed"]) == ("redknot.eval", 1, 0)
    assert document["model"]["num_kv_heads"] == 3
    heads = document["heads"]
    assert set(heads) == {"origin", "description", "fingerprint", "kv_share"}
    assert 0.1 < heads["kv_share"] <= 1
    assert document["versions"]["vllm-redknot"]
    assert list(document["suites"]) == ["fidelity", "needle", "qa"]
    tasks = {
        suite: {(cell["task"], cell["metric"]) for cell in cells}
        for suite, cells in document["suites"].items()
    }
    assert tasks == {
        "fidelity": {("essays", "nll"), ("essays", "kl"), ("essays", "top-1 agreement")},
        "needle": {(task, metric) for task in ("needle", "named") for metric in ("found", "nll")},
        "qa": {(task, metric) for task in ("squad", "hotpotqa") for metric in ("f1", "exact match", "nll")},
    }
    for cells in document["suites"].values():
        for cell in cells:
            assert set(cell) == {
                *("task", "metric", "length", "depth", "n"),
                *("stock", "redknot", "difference", "within_noise"),
            }
            assert cell["length"] in (600, 1024)
            compared = cell["metric"] not in ("kl", "top-1 agreement")
            assert (cell["stock"] is not None) is compared
            assert (cell["difference"] is not None) is compared
            assert cell["redknot"]["low"] <= cell["redknot"]["value"] <= cell["redknot"]["high"]


def test_every_second_answer_wrong_is_seen_in_every_suite(ready: Run) -> None:
    suites = json.loads(ready("--json").stdout)["suites"]
    totals = {
        (cell["task"], cell["metric"], cell["length"]): cell
        for cells in suites.values()
        for cell in cells
        if cell["depth"] is None
    }
    found = totals["needle", "found", 600]
    assert (found["n"], found["stock"]["value"], found["redknot"]["value"]) == (6, 1.0, 0.5)
    assert found["within_noise"] is False
    assert totals["needle", "nll", 1024]["difference"]["value"] == pytest.approx(1.25)
    assert totals["squad", "exact match", 600]["stock"]["value"] == 1.0
    assert totals["hotpotqa", "f1", 1024]["redknot"]["value"] < 1.0
    assert totals["essays", "top-1 agreement", 600]["redknot"]["value"] == 1.0
    assert totals["essays", "kl", 600]["redknot"]["value"] > 0.1


def test_tables_name_intervals_verdicts_and_where_needles_lie(ready: Run) -> None:
    result = ready(width=160)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    text = " ".join(result.stdout.split())
    assert "Every needle lies farther back than 128 tokens, the largest local window, at 600, 1K;" in text
    assert re.search(r"found 600 6 1.000 \[1.000, 1.000\] 0.500 \[.*\] -0.500 \[.*\] differs", text)
    assert "Found by depth, REDKNOT of stock:" in text
    assert "HotpotQA" in text


def test_a_second_run_asks_nothing_and_says_the_same(
    ready: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = ready("--json", *NEEDLE).stdout
    monkeypatch.setattr(command, "answer_all", partial(answer_all, worker=("-c", "raise SystemExit(3)")))
    assert ready("--json", *NEEDLE).stdout == first
    answers = tmp_path / "run" / "answers-redknot.jsonl"
    answers.write_text("\n".join(answers.read_text().splitlines()[:-1]) + "\n")
    broken = ready("--json", *NEEDLE)
    assert broken.exit_code == 1
    assert "the REDKNOT engine ended with exit status 3 after 0 of 1 answers" in broken.stderr


def test_other_heads_are_another_run_until_restarted(ready: Run) -> None:
    assert ready(*NEEDLE).exit_code == 0
    other = ready(*NEEDLE, "--window", "64")
    assert other.exit_code == 1
    assert "answers-stock.jsonl: belongs to another run: requests was" in other.stderr
    assert "--restart" in other.stderr
    assert ready(*NEEDLE, "--window", "64", "--restart").exit_code == 0


def test_one_suite_alone(ready: Run) -> None:
    document = json.loads(ready("--json", "--suite", "needle", "--no-beyond-window").stdout)
    assert list(document["suites"]) == ["needle"]
    assert document["choices"]["window"] is None


ROWS = ("--rows", '{"ffn_from": 20, "attention_from": 24}')


def test_an_ablation_has_every_part_beside_stock(ready: Run, started: list[str], tmp_path: Path) -> None:
    result = ready("--json", *NEEDLE, *ROWS, "--ablation")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert started == ["stock", "heads", "rows", "REDKNOT"]
    ablation = document["ablation"]
    assert list(ablation) == ["heads", "rows", "both"]
    schedule = {"ffn_from": 20, "attention_from": 24, "sink": 4, "recent": 128}
    assert [part["row_schedule"] for part in ablation.values()] == [None, schedule, schedule]
    assert document["row_schedule"] == schedule
    assert ablation["rows"]["kv_share"] == 1.0 > ablation["heads"]["kv_share"] == ablation["both"]["kv_share"]
    assert ablation["both"]["suites"] == document["suites"]
    for part in ablation.values():
        assert {(cell["task"], cell["n"]) for cell in part["suites"]["needle"] if cell["depth"] is None} == {
            ("needle", 6),
            ("named", 6),
        }
    assert "prompt logprobs" in document["notes"]["rows"]
    told = json.loads((tmp_path / "run" / "answers-rows.jsonl").read_text().splitlines()[0])
    assert told["settings"] == {"rows": schedule}


def test_the_table_of_an_ablation_has_a_column_each_and_marks_what_differs(ready: Run) -> None:
    text = " ".join(ready(*NEEDLE, *ROWS, "--ablation", width=200).stdout.split())
    assert "metric length n stock heads rows both" in text
    cell = r"0.500 \[0\.\d+, 0\.\d+\] \*"
    assert re.search(rf"found 600 6 1.000 \[1.000, 1.000\] {cell} {cell} {cell}", text)
    assert "KV bytes of stock's: heads" in text
    assert "With row skipping in prefill: no FFN from layer 20, no attention from layer 24" in text


def test_an_ablation_goes_on_from_a_plain_run_and_another_schedule_does_not(
    ready: Run, started: list[str]
) -> None:
    assert ready(*NEEDLE, *ROWS).exit_code == 0
    assert ready(*NEEDLE, *ROWS, "--ablation").exit_code == 0
    assert started == ["stock", "REDKNOT", "stock", "heads", "rows", "REDKNOT"]
    other = ready(*NEEDLE, "--rows", '{"ffn_from": 21}')
    assert other.exit_code == 1
    assert "answers-redknot.jsonl: belongs to another run" in other.stderr
    assert "rows was" in other.stderr


def test_without_rows_the_document_has_no_ablation(ready: Run) -> None:
    document = json.loads(ready("--json", *NEEDLE).stdout)
    assert document["ablation"] is document["row_schedule"] is document["notes"]["rows"] is None


def test_that_fidelity_says_nothing_of_rows_is_told(ready: Run) -> None:
    text = " ".join(ready("--suite", "fidelity", *ROWS, width=160).stdout.split())
    assert "Of row skipping: fidelity asks for prompt logprobs, and such a request skips no rows" in text


def test_a_crash_of_an_engine_is_one_line(
    fails: Callable[..., str], model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "answer_all", partial(answer_all, worker=("-c", "raise SystemExit('torn')")))
    told = fails("eval", model_path, "--output", tmp_path, "--suite", "needle", *SMALL)
    assert "the stock engine ended with exit status 1 after 0 of" in told
    assert "torn" in told


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (
            ("--lengths", "8K"),
            1,
            "prompts of 8192 tokens and 64 for answers do not fit, the model's context is 8192",
        ),
        (
            ("--max-model-len", "1K", "--lengths", "1K"),
            1,
            "--max-model-len is 1024: give --lengths of at most 960",
        ),
        (
            ("--kv-bytes", "1M", "--lengths", "1K"),
            1,
            "--kv-cache-memory-bytes is 1048576 (1 MiB), and stock vLLM needs",
        ),
        (
            # 1,088 tokens are 34 pages of 32, and one page is held back.
            ("--kv-bytes", str(35 * 32 * 23040 - 1), "--lengths", "1K"),
            1,
            f"needs {35 * 32 * 23040} (24.61 MiB) for one request of 1088 tokens: give at least that",
        ),
        (("--depths", "0.5,2"), 2, "--depths is '0.5,2': give numbers from 0 to 1"),
        (("--block-size", "24"), 2, "--block-size is 24: REDKNOT has pages of a multiple of 16"),
        (("--lengths", "20", "--suite", "needle"), 1, "length is 20: the needles alone take"),
        (("--batched-tokens", "1000000"), 1, "of logits"),
        (("--tp", "2"), 1, "--tensor-parallel-size is 2: 9 query heads and 3 KV heads do not split over it"),
        (("--ablation",), 1, "there is no schedule of rows: give --rows"),
        (("--rows", '{"ffn_from": 30}'), 1, "rows.ffn_from is 30: the model's layers are 0 to 29"),
    ],
)
def test_what_cannot_work_is_said_before_any_engine_starts(
    fails: Callable[..., str],
    started: list[str],
    model_path: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    status: int,
    told: str,
) -> None:
    assert told in fails("eval", model_path, "--output", tmp_path / "run", *arguments, status=status)
    assert not started
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("--lengths", ""), ("--lengths", "0"), ("--seeds", "1001"), ("--depths", "nan")]
)
def test_numbers_that_cannot_be_are_told_with_their_option(
    fails: Callable[..., str], tmp_path: Path, option: str, value: str
) -> None:
    assert option in fails("eval", tmp_path / "no-model", option, value, status=2)


def test_a_place_that_cannot_hold_results_is_told_before_the_model_is_looked_at(
    fails: Callable[..., str], tmp_path: Path
) -> None:
    command = ("eval", tmp_path / "no-model", "--output")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert f"--output: {tmp_path / 'file'} is no folder" in fails(*command, place)
    (tmp_path / "run" / "eval.json").mkdir(parents=True)
    assert f"{tmp_path / 'run' / 'eval.json'} is a folder" in fails(*command, tmp_path / "run")


def test_without_vllm_it_says_so(
    fails: Callable[..., str], model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    told = fails("eval", model_path)
    assert (
        "vLLM is not installed, and eval compares two of its engines: pip install 'vllm-redknot[cuda]'"
        in told
    )


def test_the_default_lengths_leave_room_for_an_answer() -> None:
    assert command.default_lengths(8192) == [1024, 2048, 4096]
    assert command.default_lengths(131072) == [1024, 2048, 4096, 8192, 16384, 32768]
    assert WORKER[0] == "-m"
