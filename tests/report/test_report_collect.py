"""Which files are read, and what is said of those that are not."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.report import samples
from vllm_redknot.heads import documents as head_documents
from vllm_redknot.report import collect as collect_module
from vllm_redknot.report.collect import Collected, collect

Change = Callable[[dict[str, Any]], object]


def collected(folder: Path, name: str, text: str | bytes) -> Collected:
    """What a folder with one more file gives."""
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return collect(folder)


def test_every_kind_is_read(results: Path) -> None:
    found = collect(results)
    assert found.warnings == []
    assert found.names == ["heads.json", "profile.json", "evaluation.json", "bench.json"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "line 1 column 2: is not JSON"),
        ("[]", "the document: is a list"),
        (b"\xff{}", "byte 0: is not UTF-8"),
        ('{"kind": "redknot.bench", "kind": "x"}', "appears twice"),
        ('{"a": NaN}', "is not finite"),
        ("[" * 100_000, "nested deeper"),
        ("{}", "its kind is None"),
        ('{"kind": ["redknot.bench"]}', "its kind is ['redknot.bench']"),
        ('{"kind": "redknot.dance", "format": 1}', "its kind is 'redknot.dance'"),
        ('{"kind": "redknot.bench", "format": 2}', "redknot.bench of format 2, and this release knows 1"),
        ('{"kind": "redknot.bench"}', "of format None"),
        ('{"format": "redknot-head-profile", "version": 9}', "key 'version': is 9"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_left_out(
    results: Path, text: str | bytes, named: str
) -> None:
    found = collected(results, "odd.json", text)
    (warning,) = found.warnings
    assert warning.startswith("odd.json is left out")
    assert named in warning
    assert len(found.names) == 4


@pytest.mark.parametrize(
    ("make", "change", "named"),
    [
        (samples.bench, lambda d: d.pop("rows"), "'rows'"),
        (samples.bench, lambda d: d["rows"][0].update(better="larger"), "'rows.0.better' is 'larger'"),
        (samples.bench, lambda d: d["rows"][0]["stock"].update(median="1"), "'rows.0.stock.median' is '1'"),
        (samples.bench, lambda d: d.update(model="x" * 301), "'model'"),
        (samples.bench, lambda d: d.update(rows=d["rows"] * 100), "'rows'"),
        (samples.evaluation, lambda d: d["suites"]["qa"][0].update(n=-1), "'suites.qa.0.n' is -1"),
        (samples.evaluation, lambda d: d["suites"]["needle"][0].update(depth=2.0), "depth"),
        (samples.evaluation, lambda d: d["suites"].update({str(i): [] for i in range(20)}), "'suites'"),
        (samples.profile, lambda d: d.update(shape=[4, 4]), "not a matrix of 4 layers x 4 heads"),
        (samples.profile, lambda d: d.update(shape=[4, 10**9]), "'shape.1'"),
        (samples.profile, lambda d: d["curve"][0].update(kv_share=-0.1), "'curve.0.kv_share'"),
    ],
)
def test_a_document_that_is_not_as_its_kind_says_is_named_by_place(
    tmp_path: Path, make: Callable[[], dict[str, Any]], change: Change, named: str
) -> None:
    document = make()
    change(document)
    found = collected(tmp_path, "odd.json", json.dumps(document))
    (warning,) = found.warnings
    assert named in warning
    assert found.names == []
    assert len(warning) < 500


def test_what_a_later_release_adds_is_no_error(tmp_path: Path) -> None:
    document = samples.bench()
    document["rows"][0]["colour"] = document["weather"] = {"sunny": True}
    found = collected(tmp_path, "new.json", json.dumps(document))
    assert (found.warnings, found.names) == ([], ["new.json"])


def test_only_json_files_of_the_folder_itself_are_read(results: Path) -> None:
    (results / "notes.txt").write_text("not JSON")
    (results / "rounds").mkdir()
    (results / "rounds" / "1-stock.json").write_text("not JSON")
    assert collect(results).warnings == []


def test_what_is_no_regular_file_is_left_out(results: Path) -> None:
    os.mkfifo(results / "pipe.json")
    (results / "folder.json").mkdir()
    (results / "dangling.json").symlink_to("nowhere")
    assert len(collect(results).warnings) == 3


def test_large_files_and_many_files_are_bounded(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_documents, "MAX_BYTES", 100_000)
    monkeypatch.setattr(collect_module, "MAX_FILES", 4)
    (results / "a.json").write_text(" " * 100_001 + "{}")
    many, large = collect(results).warnings
    assert "5 JSON files: only the first 4" in many
    assert "a.json is left out" in large
    assert "larger than 100000 bytes" in large
