"""A schedule of rows on the command line: JSON, a file, a head-class file's section, or off."""

import json
from pathlib import Path

import pytest
import typer

from vllm_redknot.cli.options import parse_rows

ROWS = {"ffn_from": 2}


def test_json_and_off_are_taken_as_they_are() -> None:
    assert parse_rows(' {"ffn_from": 2}') == ROWS
    assert parse_rows("off") == "off"


def test_a_file_holds_a_schedule_or_is_a_head_file_that_does(tmp_path: Path, heads_file: Path) -> None:
    schedule = tmp_path / "rows.json"
    schedule.write_text(json.dumps(ROWS))
    assert parse_rows(str(schedule)) == ROWS
    document = json.loads(heads_file.read_text())
    document["sections"]["rows"] = ROWS
    heads_file.write_text(json.dumps(document))
    assert parse_rows(str(heads_file)) == ROWS


def test_what_is_none_of_these_is_named(heads_file: Path, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="is no JSON object"):
        parse_rows('{"ffn_from": 2')
    with pytest.raises(typer.BadParameter, match="without a section"):
        parse_rows(str(heads_file))
    with pytest.raises(typer.BadParameter, match="is no JSON object"):
        parse_rows('{"ffn_from":' * 100_000)
    for text in (str(tmp_path / "none.json"), "on", "[20]", ""):
        with pytest.raises(typer.BadParameter, match='neither "off" nor a JSON object nor a file'):
            parse_rows(text)
