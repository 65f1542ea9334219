"""What an ablation compares: REDKNOT's head classes, its rows, and both, told apart by nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import WriteModel
from vllm_redknot.cli.configurations import configurations, row_schedule
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.target import Target, settings, target_of_model

ROWS = {"ffn_from": 2, "attention_from": 3}
Make = Callable[..., Target]


@pytest.fixture
def heads_with_rows(heads_file: Path) -> Path:
    """The head file with a schedule of rows."""
    document = json.loads(heads_file.read_text())
    document["sections"]["rows"] = {"ffn_from": 3}
    heads_file.write_text(json.dumps(document))
    return heads_file


def test_without_ablation_there_is_redknot_as_asked_for(write_model: WriteModel, heads_file: Path) -> None:
    config = settings(heads=str(heads_file), rows=ROWS)
    (whole,) = configurations(target_of_model(write_model(), config), config, ablation=False)
    assert (whole.name, whole.label) == ("redknot", "both")
    assert whole.config == config
    assert whole.rows is not None
    assert whole.section == {"heads": str(heads_file), "rows": ROWS}


def test_each_part_of_an_ablation_has_the_others_off(write_model: WriteModel, heads_file: Path) -> None:
    config = settings(heads=str(heads_file), window=64, dense_prefix_layers=1, max_groups=3, rows=ROWS)
    heads, rows, both = configurations(target_of_model(write_model(), config), config, ablation=True)
    assert [part.label for part in (heads, rows, both)] == ["heads", "rows", "both"]
    assert heads.section == {**both.section, "rows": "off"}
    assert heads.profile == both.profile
    assert heads.rows is None
    assert rows.profile.is_all_global
    assert rows.rows == both.rows
    assert {key: value for key, value in rows.section.items() if key != "rows"} == {
        "heads": "all-global",
        "max_groups": 3,
    }
    assert rows.section["rows"] == {**ROWS, "sink": 4, "recent": 128}
    assert both.section["window"] == 64


def test_a_schedule_in_the_head_file_is_stated_where_the_file_is_not_read(
    write_model: WriteModel, heads_with_rows: Path
) -> None:
    config = settings(heads=str(heads_with_rows))
    heads, rows, both = configurations(target_of_model(write_model(), config), config, ablation=True)
    assert heads.section["rows"] == "off"
    assert rows.section["rows"]["ffn_from"] == 3
    assert "rows" not in both.section
    assert both.rows == rows.rows


def test_rows_off_go_before_the_head_file(write_model: WriteModel, heads_with_rows: Path) -> None:
    config = settings(heads=str(heads_with_rows), rows="off")
    assert row_schedule(target_of_model(write_model(), config), config) is None


def test_an_ablation_without_a_schedule_is_refused(write_model: WriteModel, heads_file: Path) -> None:
    config = settings(heads=str(heads_file))
    with pytest.raises(CliError, match="there is no schedule of rows: give --rows"):
        configurations(target_of_model(write_model(), config), config, ablation=True)


def test_a_layer_the_model_has_not_is_named(write_model: WriteModel, heads_file: Path) -> None:
    config = settings(heads=str(heads_file), rows={"ffn_from": 4})
    with pytest.raises(CliError, match=r"rows.ffn_from is 4: the model's layers are 0 to 3"):
        configurations(target_of_model(write_model(), config), config, ablation=False)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("REDKNOT_ROWS", "off"), ("REDKNOT_WINDOW", "77"), ("REDKNOT_HEADS", "all-global")],
)
def test_a_variable_that_would_hold_in_every_configuration_is_refused(
    write_model: WriteModel,
    heads_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: Any,
) -> None:
    given = settings(heads=str(heads_file), rows=ROWS)
    target = target_of_model(write_model(), given)
    monkeypatch.setenv(variable, value)
    with pytest.raises(CliError, match=f"{variable} is set and would hold"):
        configurations(target, given, ablation=True)
