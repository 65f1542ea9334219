"""`redknot profile --rows` on real weights, and an engine that serves what it wrote."""

import json
from pathlib import Path

import prometheus_client
import pytest
from typer.testing import CliRunner

from tests.engine.conftest import Cut
from tests.engine.harness import engine
from vllm_redknot.cli.main import app
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.rows.schedule import RowSchedule, schedule_of

pytestmark = pytest.mark.slow

PROMPT = 900


def counted(kind: str, outcome: str) -> float:
    """Over all layers."""
    return sum(
        sample.value
        for metric in prometheus_client.REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "vllm:redknot_prefill_rows_total"
        and (sample.labels["kind"], sample.labels["outcome"]) == (kind, outcome)
    )


def test_a_calibrated_file_is_served_and_skips_the_rows_it_says(
    model_path: Path, cut: Cut, tmp_path: Path
) -> None:
    output = tmp_path / "heads.json"
    # Loose limits on few texts: what is tested is the way from the search to the engine, not the schedule.
    few = ["--lengths", "700", "--texts", "1", "--check-lengths", "700", "--check-texts", "1"]
    loose = ["--recent", "96", "--max-nll-increase", "0.5", "--max-kl", "1", "--needle-recall", "0"]
    result = CliRunner().invoke(
        app, ["profile", str(model_path), "--rows", "--predictors", *few, *loose, "-o", str(output), "--json"]
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["kind"] == "redknot.rows"
    assert json.loads((tmp_path / "heads.json.evidence.json").read_text())["tried"] == document["tried"]
    profile = load_profile(output)
    schedule = schedule_of(None, profile.sections)
    assert isinstance(schedule, RowSchedule)
    assert schedule.ffn_from is not None
    assert schedule.recent == 96
    calibration = profile.sections["row_calibration"]
    assert calibration["heads"] == profile.fingerprint() == document["heads"]["fingerprint"]
    assert not calibration["provisional"]
    assert len(calibration["held_out"]) == 3
    before = {key: counted(*key) for key in (("attention", "skipped"), ("ffn", "skipped"))}
    with engine(model_path, {"heads": str(output)}) as server:
        server.complete([cut(0, PROMPT)], max_tokens=2)
        skipped = {key: counted(*key) - value for key, value in before.items()}
    may_skip = PROMPT - schedule.sink - schedule.recent
    attention_from = 30 if schedule.attention_from is None else schedule.attention_from
    assert skipped["attention", "skipped"] == (30 - attention_from) * may_skip
    # The rows that predictors before the late layers skip come on top.
    late = (30 - schedule.ffn_from) * may_skip
    assert skipped["ffn", "skipped"] >= late > 0
    assert (skipped["ffn", "skipped"] > late) == (schedule.sparse_ffn is not None)
