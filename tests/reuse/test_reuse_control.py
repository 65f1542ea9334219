"""What a request may say about reuse."""

import json
from typing import Any

import pytest

from vllm_redknot.reuse.control import OFF, Control, parse_control
from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.texts import MAX_TEXT_BYTES, MAX_TEXTS


def test_a_request_that_says_nothing_is_searched_and_marks_nothing() -> None:
    assert parse_control(None, 9) == parse_control({}, 9) == parse_control({"other": 1}, 9) == Control()


def test_off_is_off() -> None:
    assert parse_control({"redknot_reuse": "off"}, 9) == OFF


def test_objects_and_their_json_say_the_same() -> None:
    wish = {"spans": [[4, 9], [0, 3]], "boundary": 4, "reuse": False}
    expected = Control(spans=((0, 3), (4, 9)), boundary=4, reuse=False, policy="boundary")
    assert parse_control({"redknot_reuse": wish}, 9) == expected
    assert parse_control({"redknot_reuse": json.dumps(wish)}, 9) == expected


def test_documents_are_marked_by_spans_or_by_texts() -> None:
    by_text = parse_control({"redknot_reuse": {"texts": ["one", " two"], "boundary": 4}}, 9)
    assert by_text == Control(texts=("one", " two"), boundary=4, policy="boundary")
    assert by_text.marks
    assert parse_control({"redknot_reuse": {"spans": [[0, 3]]}}, 9).marks
    assert not parse_control({"redknot_reuse": {"texts": []}}, 9).marks


def test_texts_may_be_as_many_and_as_large_as_the_bounds_and_no_more() -> None:
    half = "\u00e9" * (MAX_TEXT_BYTES // 4)
    assert parse_control({"redknot_reuse": {"texts": [half, half]}}, 9).texts == (half, half)
    with pytest.raises(
        ReuseError, match=f"have {MAX_TEXT_BYTES + 1} bytes: give at most {MAX_TEXT_BYTES} in all"
    ):
        parse_control({"redknot_reuse": {"texts": [half, half, "x"]}}, 9)
    assert len(parse_control({"redknot_reuse": {"texts": ["x"] * MAX_TEXTS}}, 9).texts) == MAX_TEXTS
    with pytest.raises(ReuseError, match=f"texts: give a list of at most {MAX_TEXTS} strings"):
        parse_control({"redknot_reuse": {"texts": ["x"] * (MAX_TEXTS + 1)}}, 9)


@pytest.mark.parametrize(
    ("wish", "policy", "boundary", "share"),
    [
        ({}, None, None, None),
        ({"policy": "blend"}, "blend", None, None),
        ({"policy": "blend", "share": 1}, "blend", None, 1.0),
        ({"share": 0}, "blend", None, 0.0),
        ({"boundary": 0}, "boundary", 0, None),
        ({"policy": "boundary"}, "boundary", None, None),
    ],
)
def test_the_policy_is_the_one_whose_number_is_given(
    wish: Any, policy: str | None, boundary: int | None, share: float | None
) -> None:
    control = parse_control({"redknot_reuse": wish}, 9)
    assert (control.policy, control.boundary, control.share) == (policy, boundary, share)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (7, 'is 7: give "off", or an object'),
        ("on", "is 'on': give \"off\", or an object"),
        ({"span": []}, 'give "off", or an object'),
        ({"boundary": -1}, "boundary is -1: give an integer >= 0"),
        ({"boundary": True}, "boundary is True: give an integer >= 0"),
        ({"boundary": 1.5}, "boundary is 1.5: give an integer >= 0"),
        ({"reuse": 1}, "reuse is 1: give true or false"),
        ({"policy": "best"}, 'policy is .best.: give "boundary" or "blend"'),
        ({"policy": ["blend"]}, 'give "boundary" or "blend"'),
        ({"policy": "blend", "share": 1.5}, "share is 1.5: give a number from 0 to 1"),
        ({"share": -0.1}, "give a number from 0 to 1"),
        ({"share": True}, "give a number from 0 to 1"),
        ({"share": "0.1"}, "give a number from 0 to 1"),
        ({"share": float("nan")}, "give a number from 0 to 1"),
        (
            {"policy": "blend", "boundary": 16},
            '"boundary" is of policy "boundary", "share" of "blend"; give one',
        ),
        ({"policy": "boundary", "share": 0.1}, "give one"),
        ({"boundary": 0, "share": 0.1}, "give one"),
        ({"spans": [[0, 10]]}, "give 0 <= begin < end <= 9"),
        ({"spans": [[0, 5], [4, 9]]}, "overlap"),
        ({"spans": [[0, 5]], "texts": ["one"]}, 'has "spans" and "texts": give one'),
        ({"texts": "one"}, "texts: give a list of at most"),
        ({"texts": ["one", 2]}, r"texts\[1\] is 2: give a string"),
        ({"texts": ["one", "\ud800"]}, r"texts\[1\] is no Unicode text: surrogates not allowed"),
        ("[" * 100_000, 'give "off", or an object'),
    ],
)
def test_anything_else_is_an_error_that_says_what_is_valid(wish: Any, message: str) -> None:
    with pytest.raises(ReuseError, match=message):
        parse_control({"redknot_reuse": wish}, 9)
