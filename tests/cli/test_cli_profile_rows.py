"""`redknot profile --rows`: what it refuses, and what it writes of a calibration."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from vllm_redknot.cli import row_profile
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.profiler.quality import Answer
from vllm_redknot.profiler.row_judge import RowComparison, RowVerdict
from vllm_redknot.profiler.row_run import RowOutcome
from vllm_redknot.profiler.verify import Comparison
from vllm_redknot.rows.savings import Savings
from vllm_redknot.rows.schedule import RowSchedule

SCHEDULE = RowSchedule(ffn_from=2, attention_from=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rows", "--kv-share", "0.2"), "--rows keeps the head classes there are, and --kv-share chooses"),
        (("--rows", "--windows", "128,256"), "and --windows chooses new ones: make them first"),
        (("--heads", "heads.json"), "--heads is for --rows: give both or neither"),
        (("--recent", "64"), "--recent is for --rows"),
        (("--predictors",), "--predictors is for --rows"),
        (("--rows", "--lengths", "500"), "leave a `recent` of 256 little to skip: give at least 560"),
        (("--rows", "--check-lengths", "9K"), "9216 tokens are more than the model's 8192"),
        (("--rows", "--heads", "/nowhere.json"), "/nowhere.json"),
    ],
)
def test_wrong_options_are_one_line_that_says_what_to_give(
    redknot: Run, model_path: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    result = redknot("profile", model_path, "-o", tmp_path / "heads.json", *options)
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def calibrated(
    monkeypatch: pytest.MonkeyPatch, redknot: Run, model_path: Path, tmp_path: Path
) -> Callable[..., Any]:
    """Runs the command with a search and a check whose result is given: which limits of the check fail."""

    def run(failures: tuple[str, ...], *options: str) -> Any:
        row = RowComparison(Comparison("needle", 1024, 4, 4, 3, 0.1, 0.3, 1, 0), 0.01)
        essays = RowComparison(Comparison("essays", 1024, 4, 0, 0, 3.1, 3.12, 0, 0), 0.03)
        dense = (Answer("needle", 1024, 0.05, True), Answer("essays", 1024, 3.0, False))
        outcome = RowOutcome(
            SCHEDULE,
            Savings(8192, 0.2, 0.3, 0.25, 0.7),
            RowVerdict((row, essays), failures, {}),
            dense,
            (),
        )
        monkeypatch.setattr(row_profile, "_run", lambda *_: outcome)
        return redknot("profile", model_path, "--rows", "-o", tmp_path / "heads.json", *options, width=200)

    return run


def test_a_schedule_that_holds_is_written_with_its_evidence_and_the_same_heads(
    calibrated: Callable[..., Any], model_path: Path, tmp_path: Path, redknot: Run
) -> None:
    result = calibrated(())
    assert result.exit_code == 0, result.output
    assert "no FFN from layer 2, no attention from layer 3" in result.stdout
    profile = load_profile(tmp_path / "heads.json")
    assert profile.sections["rows"] == SCHEDULE.to_section()
    calibration = profile.sections["row_calibration"]
    assert calibration["savings"]["ffn_rows"] == 0.3
    assert (calibration["provisional"], calibration["failures"]) == (False, [])
    (needle, _) = calibration["held_out"]
    assert (needle["dense_found"], needle["heads_found"], needle["found"]) == (1, 4, 3)
    served = json.loads(redknot("inspect", model_path, "--json").stdout)
    assert profile.fingerprint() == served["fingerprint"]
    evidence = json.loads((tmp_path / "heads.json.evidence.json").read_text())
    assert (evidence["kind"], evidence["chosen"]["schedule"]) == ("redknot.rows", SCHEDULE.to_section())


def test_a_schedule_that_breaks_its_budget_is_not_written(
    calibrated: Callable[..., Any], tmp_path: Path
) -> None:
    result = calibrated(("needle: 3 answers found where heads alone find 4; asked: 95%",))
    assert result.exit_code == 1
    assert "the schedule fails its check: needle: 3 answers" in result.stderr
    assert "is not written: allow more" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_schedule_that_breaks_its_budget_is_written_by_force_and_marked(
    calibrated: Callable[..., Any], tmp_path: Path
) -> None:
    result = calibrated(("essays: NLL rises by 0.3 nats a token; allowed: 0.05",), "--force")
    assert result.exit_code == 0, result.output
    profile = load_profile(tmp_path / "heads.json")
    assert profile.provenance is not None
    assert profile.provenance.provisional
    assert "FAILED with rows: essays: NLL rises by 0.3" in str(profile.provenance.notes)
    assert profile.sections["row_calibration"]["provisional"]


def test_a_file_of_ones_own_keeps_what_it_says_beside_the_rows(
    calibrated: Callable[..., Any], tmp_path: Path
) -> None:
    assert calibrated((), "--heads", "all-global").exit_code == 0
    profile = load_profile(tmp_path / "heads.json")
    assert profile.is_all_global
    given = json.loads((tmp_path / "heads.json").read_text())
    given["sections"] |= {"evidence": {"needle": 0.5}, "rows": {"ffn_from": 29}}
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(given))
    assert calibrated((), "--heads", str(mine), "--force").exit_code == 0
    sections = load_profile(tmp_path / "heads.json").sections
    assert sections["evidence"] == {"needle": 0.5}
    assert sections["rows"] == SCHEDULE.to_section()
