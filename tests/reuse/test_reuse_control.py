"""What a request may say about reuse."""

import json
from typing import Any

import pytest

from vllm_redknot.reuse.control import OFF, Control, parse_control
from vllm_redknot.reuse.faults import ReuseError


def test_a_request_that_says_nothing_is_searched_and_marks_nothing() -> None:
    assert parse_control(None, 9) == parse_control({}, 9) == parse_control({"other": 1}, 9) == Control()


def test_off_is_off() -> None:
    assert parse_control({"redknot_reuse": "off"}, 9) == OFF


def test_objects_and_their_json_say_the_same() -> None:
    wish = {"spans": [[4, 9], [0, 3]], "boundary": 4, "reuse": False}
    expected = Control(spans=((0, 3), (4, 9)), boundary=4, reuse=False)
    assert parse_control({"redknot_reuse": wish}, 9) == expected
    assert parse_control({"redknot_reuse": json.dumps(wish)}, 9) == expected


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
        ({"spans": [[0, 10]]}, "give 0 <= begin < end <= 9"),
        ({"spans": [[0, 5], [4, 9]]}, "overlap"),
    ],
)
def test_anything_else_is_an_error_that_says_what_is_valid(wish: Any, message: str) -> None:
    with pytest.raises(ReuseError, match=message):
        parse_control({"redknot_reuse": wish}, 9)
