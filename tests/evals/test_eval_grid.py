"""Needles lie where they are said to lie."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vllm_redknot.evals.grid import NAMED_DEPTHS, NeedleItem, needle_items, needle_scores
from vllm_redknot.evals.requests import Answer

DEPTHS = (0.1, 0.5, 0.9, 1.0)


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_path / "tokenizer.json"))


def end_of_last_needle(tokenizer: Tokenizer, item: NeedleItem) -> int:
    """Tokens from the end of the last passcode in the text to the end of the prompt."""
    text = tokenizer.decode(list(item.request.prompt))
    question = text.rindex("\n\n")
    last = max(
        text.rindex(said, 0, question)
        for said in ("Remember it.", "is the secret passcode.")
        if said in text[:question]
    )
    return len(tokenizer.encode(text[last:], add_special_tokens=False).ids)


@pytest.mark.parametrize("window", [256, 700])
def test_every_needle_lies_farther_back_than_the_window(tokenizer: Tokenizer, window: int) -> None:
    items = list(needle_items(tokenizer, [1024, 2048], DEPTHS, [0, 1], window, None))
    assert len(items) == 2 * (len(DEPTHS) * 2 + 4 * 2)
    for item in items:
        assert item.beyond_window
        # The sentence that holds the answer ends the needle, or is followed by its "Remember it.".
        assert end_of_last_needle(tokenizer, item) > window - 20
        assert item.place.length - 100 < len(item.request.prompt) <= item.place.length


def test_depths_still_spread_needles_over_what_is_beyond_the_window(tokenizer: Tokenizer) -> None:
    items = list(needle_items(tokenizer, [2048], [0.0, 0.5, 1.0], [0], 1024, None))[:3]
    gaps = [end_of_last_needle(tokenizer, item) for item in items]
    assert gaps[0] > 1900
    assert 1400 < gaps[1] < 1650
    assert 1000 < gaps[2] < 1200


def test_a_length_too_short_for_the_window_has_needles_within_it_and_says_so(tokenizer: Tokenizer) -> None:
    items = list(needle_items(tokenizer, [1024], DEPTHS, [0], 1000, None))
    assert not any(item.beyond_window for item in items)
    assert min(end_of_last_needle(tokenizer, item) for item in items) < 100


def test_without_a_window_depths_are_of_the_whole_text(tokenizer: Tokenizer) -> None:
    items = list(needle_items(tokenizer, [1024], [0.5], [0], None, None))
    assert 400 < end_of_last_needle(tokenizer, items[0]) < 600
    assert not items[0].beyond_window


def test_every_name_is_asked_for_and_every_request_is_another(tokenizer: Tokenizer) -> None:
    items = list(needle_items(tokenizer, [600], [0.5], [0, 1], None, None))
    named = [item for item in items if item.place.task == "named"]
    assert sorted(item.place.depth or 0.0 for item in named) == sorted(NAMED_DEPTHS * 2)
    asked = {tokenizer.decode(list(item.request.prompt)).rsplit("\n\n", 1)[1] for item in named}
    assert asked == {f"The {name} passcode is" for name in ("red", "green", "blue", "white")}
    assert (
        len({item.request.key for item in items})
        == len({item.request.prompt for item in items})
        == len(items)
    )


def test_a_limit_keeps_all_depths_in_turn(tokenizer: Tokenizer) -> None:
    items = list(needle_items(tokenizer, [600, 700], DEPTHS, [0, 1], None, 4))
    assert len(items) == 2 * (4 + 4)
    assert {item.place.depth for item in items if item.place.task == "needle"} == set(DEPTHS)


def test_an_answer_is_right_if_it_states_the_passcode(tokenizer: Tokenizer) -> None:
    (item, *_) = needle_items(tokenizer, [600], [0.5], [0], None, None)
    assert item.passcode.isdigit()
    assert len(item.passcode) == 5
    stock = Answer("a", f" {item.passcode}. I", (-0.25, -0.75))
    redknot = Answer("a", " 0", (-3.0, -1.0))
    found = {score.metric: (score.stock, score.redknot) for score in needle_scores(item, stock, redknot)}
    assert found == {"found": (1.0, 0.0), "nll": (0.5, 2.0)}


def test_no_room_for_a_needle_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="length is 20"):
        list(needle_items(tokenizer, [20], [0.5], [0], None, None))
