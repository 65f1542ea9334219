"""The schedule of row skipping: what may be stated, where, and what each refusal says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.config import RedknotConfig, RedknotConfigError
from vllm_redknot.heads.errors import HeadFileError
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.native import dumps
from vllm_redknot.rows.schedule import RowSchedule, RowScheduleError, schedule_of
from vllm_redknot.rows.sparse_ffn import Probe

LATE = {"ffn_from": 20, "attention_from": 24}
RELATIVE = {"rule": "relative_norm", "thresholds": {"5": 0.1, "12": 0.25}}
PREDICTOR: dict[str, Any] = {"rule": "predictor", "probes": {"5": {"threshold": -0.5, "weights": "ADwAwA=="}}}
"""Weights 1 and -2."""
MASS = {"rule": "mass", "start": 4, "share": 0.2, "deep_start": 20, "deep_share": 0.05}


def with_probe(**changes: Any) -> dict[str, Any]:
    """`PREDICTOR` with another probe."""
    return {**PREDICTOR, "probes": {"5": {**PREDICTOR["probes"]["5"], **changes}}}


def test_sinks_and_recent_tokens_have_defaults() -> None:
    schedule = RowSchedule.parse(LATE)
    assert (schedule.sink, schedule.recent) == (4, 128)


@pytest.mark.parametrize(
    "values",
    [
        LATE,
        {"ffn_from": 3},
        *({"sparse_ffn": sparse, **LATE} for sparse in (RELATIVE, PREDICTOR)),
        {"sparse_ffn": MASS},
    ],
)
def test_a_schedule_survives_its_section(values: dict[str, Any]) -> None:
    schedule = RowSchedule.parse(values)
    assert RowSchedule.parse(schedule.to_section()) == schedule
    assert RowSchedule.parse(schedule.to_section()).digest() == schedule.digest()


def test_schedules_that_differ_have_digests_that_differ() -> None:
    variants = [
        LATE,
        {**LATE, "recent": 64},
        {**LATE, "sink": 0},
        {**LATE, "sparse_ffn": RELATIVE},
        {**LATE, "sparse_ffn": PREDICTOR},
        {**LATE, "sparse_ffn": with_probe(weights="ADwAwgA8")},
        {"ffn_from": 20},
    ]
    assert len({RowSchedule.parse(values).digest() for values in variants}) == len(variants)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing is skipped"),
        ({"sink": 4, "recent": 16}, "nothing is skipped"),
        ({"attention_from": 3}, "give ffn_from <= attention_from"),
        ({"ffn_from": 5, "attention_from": 4}, "give ffn_from <= attention_from"),
        ({"ffn_frm": 5}, r"rows\.ffn_frm"),
        ({"ffn_from": "5"}, r"rows\.ffn_from is '5'"),
        ({"ffn_from": True}, r"rows\.ffn_from is True"),
        ({"ffn_from": -1}, r"rows\.ffn_from is -1"),
        ({**LATE, "recent": 0}, r"rows\.recent is 0"),
        ({**LATE, "sink": -1}, r"rows\.sink is -1"),
        ({"sparse_ffn": {"rule": "magic"}}, r"rows\.sparse_ffn"),
        ({"sparse_ffn": {**RELATIVE, "thresholds": {}}}, r"rows\.sparse_ffn\.relative_norm\.thresholds"),
        ({"sparse_ffn": {**RELATIVE, "thresholds": {"05": 1.0}}}, r"thresholds"),
        ({"sparse_ffn": {**RELATIVE, "thresholds": {"5": -1.0}}}, r"thresholds\.5 is -1\.0"),
        ({"sparse_ffn": {**MASS, "share": 0.0}}, r"share is 0\.0"),
        ({"sparse_ffn": {**MASS, "deep_share": None}}, "deep_start and deep_share together"),
        ({"sparse_ffn": {**MASS, "deep_start": 2}}, "deep_start is 2"),
        ({"ffn_from": 12, "sparse_ffn": RELATIVE}, "sparse_ffn names layer 12"),
        ({"ffn_from": 5, "sparse_ffn": PREDICTOR}, "sparse_ffn names layer 5"),
        ({"sparse_ffn": {**PREDICTOR, "probes": {}}}, r"predictor\.probes is {}"),
        ({"sparse_ffn": with_probe(weights="ADwAw")}, r"probes\.5\.weights .*no base64 of fp16 values"),
        ({"sparse_ffn": with_probe(weights="ADwA")}, r"probes\.5\.weights .*no base64 of fp16 values"),
        ({"sparse_ffn": with_probe(weights="AD\u00e9A")}, r"probes\.5\.weights .*no base64 of fp16 values"),
        ({"sparse_ffn": with_probe(weights="")}, r"probes\.5\.weights .*0 weights: give 1 to 65536"),
        ({"sparse_ffn": with_probe(weights="AHw=")}, r"probes\.5\.weights .*all finite"),
        ({"sparse_ffn": with_probe(threshold=float("nan"))}, r"probes\.5\.threshold is nan"),
        ({"sparse_ffn": with_probe(scale=1.0)}, r"probes\.5\.scale"),
        ({"ffn_from": 4, "sparse_ffn": MASS}, "sparse_ffn names layer 4"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_place(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RowScheduleError, match=message):
        RowSchedule.parse(values)


@pytest.mark.parametrize(
    "values",
    [
        {"ffn_from": 30},
        {"ffn_from": 3, "attention_from": 30},
        {"sparse_ffn": {**RELATIVE, "thresholds": {"30": 1.0}}},
        {"sparse_ffn": {**PREDICTOR, "probes": {"30": PREDICTOR["probes"]["5"]}}},
    ],
)
def test_layers_the_model_has_not_are_refused(values: dict[str, Any]) -> None:
    RowSchedule.parse(values).check_model(31, None)
    with pytest.raises(RowScheduleError, match=r"is 30: the model's layers are 0 to 29"):
        RowSchedule.parse(values).check_model(30, None)


def test_a_predictor_of_another_width_is_refused() -> None:
    schedule = RowSchedule.parse({"sparse_ffn": PREDICTOR})
    schedule.check_model(30, 2)
    with pytest.raises(
        RowScheduleError, match=r"probes\.5 has 2 weights: the model's states have 576 values"
    ):
        schedule.check_model(30, 576)


def test_a_probe_keeps_its_weights_to_fp16() -> None:
    assert Probe.of([1.0, -2.0], -0.5).model_dump() == PREDICTOR["probes"]["5"]
    assert Probe.of([0.1, 65504.0], 0.0).values() == (pytest.approx(0.1, rel=1e-3), 65504.0)


@pytest.mark.parametrize(
    ("prompt", "skippable"), [(1, (4, 4)), (131, (4, 4)), (132, (4, 4)), (133, (4, 5)), (1000, (4, 872))]
)
def test_a_prompt_is_short_until_it_is_longer_than_sinks_and_recent_tokens(
    prompt: int, skippable: tuple[int, int]
) -> None:
    assert RowSchedule.parse(LATE).skippable(prompt) == skippable


def test_the_setting_goes_before_the_file_and_off_before_both() -> None:
    file = {"rows": LATE, "evidence": 3}
    assert schedule_of(None, {"evidence": 3}) is None
    assert schedule_of(None, file) == RowSchedule.parse(LATE)
    assert schedule_of({"ffn_from": 7}, file) == RowSchedule.parse({"ffn_from": 7})
    assert schedule_of("off", file) is None


def test_the_setting_is_checked_with_the_others() -> None:
    assert RedknotConfig.from_additional_config({"redknot": {"rows": LATE}}, {}).rows == LATE
    assert RedknotConfig.from_additional_config(None, {"REDKNOT_ROWS": "off"}).rows == "off"
    with pytest.raises(RedknotConfigError, match=r"redknot\.rows is .* \(rows\.ffn_frm"):
        RedknotConfig.from_additional_config({"redknot": {"rows": {"ffn_frm": 3}}}, {})
    with pytest.raises(RedknotConfigError, match=r"redknot\.rows is 'on' \(str\): give \"off\""):
        RedknotConfig.from_additional_config({"redknot": {"rows": "on"}}, {})


def head_file(folder: Path, rows: object) -> Path:
    path = folder / "heads.json"
    layer = {"layer": 0, "classes": ["global"]}
    document = {
        "format": "redknot-head-profile",
        "version": 1,
        "model": {},
        "provenance": {},
        "layers": [layer],
    }
    path.write_text(json.dumps({**document, "sections": {"rows": rows}}))
    return path


def test_a_head_file_keeps_its_schedule(tmp_path: Path) -> None:
    profile = load_profile(head_file(tmp_path, LATE))
    assert schedule_of(None, profile.sections) == RowSchedule.parse(LATE)
    (tmp_path / "heads.json").write_text(dumps(profile))
    assert load_profile(tmp_path / "heads.json").sections == {"rows": LATE}


@pytest.mark.parametrize("rows", [{"ffn_frm": 3}, {"ffn_from": 3, "recent": 0}, [], 5])
def test_a_head_file_with_a_wrong_schedule_is_refused(rows: object, tmp_path: Path) -> None:
    with pytest.raises(
        HeadFileError, match=r"heads\.json, section 'rows': states a schedule that cannot be used"
    ):
        load_profile(head_file(tmp_path, rows))
