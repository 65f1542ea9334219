"""What a request asks for and does not get, its response says: a smaller boundary, or reuse where it is refused."""

from typing import Any

import pytest

from tests.reuse.new_request import new_request
from vllm_redknot.reuse.messages import Found, Lookup, ReuseReport
from vllm_redknot.reuse.permitted import Permitted
from vllm_redknot.reuse.tracker import Tracker


def lookup(tracker: Tracker, boundary: int | None) -> tuple[Lookup, dict[str, Any]]:
    """What the worker is asked for a request with this wish, and what the response says."""
    tracker.add(new_request({} if boundary is None else {"boundary": boundary}), eligible=True)
    (asked,) = tracker.metadata({}, lambda _: ()).lookups
    return asked, tracker.finished("a")


@pytest.mark.parametrize(("wish", "used"), [(None, 24), (16, 16), (99, 99)])
def test_a_boundary_that_is_large_enough_is_honoured(wish: int | None, used: int) -> None:
    asked, details = lookup(Tracker(Permitted(24, least_boundary=16), "first", 64), wish)
    assert asked.boundary == used
    assert "problem" not in details


@pytest.mark.parametrize("wish", [0, 15])
def test_a_smaller_one_is_raised_and_the_response_says_so(wish: int) -> None:
    asked, details = lookup(Tracker(Permitted(24, least_boundary=16), "first", 64), wish)
    assert asked.boundary == 16
    assert details["problem"] == (
        f"boundary {wish} is less than 16, which the server's receipt is for: 16 was used"
    )


def test_without_a_receipt_any_boundary_is_honoured() -> None:
    asked, details = lookup(Tracker(Permitted(24), "first", 64), 0)
    assert asked.boundary == 0
    assert "problem" not in details


def test_texts_go_to_the_worker_and_what_it_does_not_find_is_told_beside_other_problems() -> None:
    tracker = Tracker(Permitted(24, least_boundary=16), "first", 64)
    tracker.add(new_request({"texts": ["one", "two"], "boundary": 4}), eligible=True)
    (asked,) = tracker.metadata({}, lambda _: ()).lookups
    assert (asked.texts, asked.spans, asked.boundary) == (("one", "two"), (), 16)
    tracker.receive(ReuseReport(found=[Found(asked.ticket, (), (), 0, "texts[1] is not there")]))
    # A request that starts over asks again.
    tracker.preempted("a")
    (again,) = tracker.metadata({}, lambda _: ()).lookups
    assert again.texts == ("one", "two")
    tracker.receive(ReuseReport(found=[Found(again.ticket, (), (), 0, "texts[1] is not there")]))
    assert tracker.finished("a")["problem"] == (
        "boundary 4 is less than 16, which the server's receipt is for: 16 was used; texts[1] is not there"
    )


@pytest.mark.parametrize(
    ("wish", "told"), [({"spans": [[0, 90]]}, "not here"), (None, "not here"), ("off", None)]
)
def test_a_refused_request_is_served_without_reuse_and_told_why_if_it_asked(
    wish: Any, told: str | None
) -> None:
    tracker = Tracker(Permitted(24), "first", 64)
    tracker.add(new_request(wish), eligible=True, refused="not here")
    assert tracker.ready("a")
    assert tracker.metadata({}, lambda _: ()).lookups == []
    assert tracker.finished("a").get("problem") == told
