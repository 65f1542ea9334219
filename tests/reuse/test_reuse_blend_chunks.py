"""How chunks end at blended spans, and what the worker is told to load of each chunk."""

from typing import Any

import pytest

from tests.reuse.new_request import new_request
from vllm_redknot.reuse.messages import Found, ReuseReport
from vllm_redknot.reuse.permitted import Permitted
from vllm_redknot.reuse.plan import CleanSpan
from vllm_redknot.reuse.policy import Blend
from vllm_redknot.reuse.tracker import Tracker

SPANS = (CleanSpan(0, 40, "a", 0), CleanSpan(50, 150, "b", 0), CleanSpan(150, 190, "c", 7))


def tracked(wish: dict[str, Any]) -> tuple[Tracker, Any]:
    """A request of 200 tokens whose lookup has found three spans."""
    tracker = Tracker(Permitted(16, share=0.2), "first", 31)
    request = new_request(wish, tokens=200)
    tracker.add(request, eligible=True)
    (lookup,) = tracker.metadata({}, lambda _: ()).lookups
    assert lookup.boundary == 0
    tracker.receive(ReuseReport(found=[Found(lookup.ticket, SPANS, (), 0)]))
    assert tracker.ready("a")
    return tracker, request


@pytest.mark.parametrize(
    ("limit", "chunks"),
    [
        (1000, [(40, 200)]),
        (160, [(40, 200)]),
        # What is not there to its end begins a chunk of its own.
        (159, [(40, 199), (199, 200)]),
        (149, [(40, 150), (150, 200)]),
        (109, [(40, 50), (50, 150), (150, 200)]),
        (64, [(40, 50), (50, 114), (114, 150), (150, 200)]),
        (30, [(40, 50), (50, 80), (80, 110), (110, 140), (140, 150), (150, 180), (180, 200)]),
    ],
)
def test_a_span_is_cut_only_where_it_begins_a_chunk(limit: int, chunks: list[tuple[int, int]]) -> None:
    tracker, request = tracked({"share": 0.2})
    # The start of a document at the start of the prompt lacks nothing.
    assert tracker.matched("a", 0) == 40
    tracker.admitted("a", 40)
    assert tracker.cacheable("a", 200) == 0
    request.num_computed_tokens = 40
    found, loads, released = [], [], []
    while request.num_computed_tokens < 200:
        begin = request.num_computed_tokens
        assert tracker.next_skip(request) is None
        count = tracker.chunk(request, begin, min(limit, 200 - begin), running=begin > 40)
        message = tracker.metadata({"a": count}, lambda _: ([1, 2],))
        found.append((begin, begin + count))
        loads += message.loads
        released.append(bool(message.releases))
        request.num_computed_tokens += count
    assert found == chunks
    assert loads[0].blend is None
    parts = [load.span for load in loads[1:]]
    assert all(load.blend == Blend(0.2) and load.reader == load.span.begin for load in loads[1:])
    # Every token of the two moved spans once, with its place in its segment.
    tokens = [
        (part.content, part.offset + i, part.begin + i)
        for part in parts
        for i in range(part.end - part.begin)
    ]
    assert tokens == [("b", i, 50 + i) for i in range(100)] + [("c", 7 + i, 150 + i) for i in range(40)]
    assert released.index(True) == next(i for i, (_, end) in enumerate(chunks) if end >= 190)
    reused = 40 + sum(part.end - part.begin - round(0.2 * (part.end - part.begin)) for part in parts)
    details = tracker.finished("a")
    assert (details["segment_tokens"], details["segments"]) == (reused, 3)
    assert (details["policy"], details["share"]) == ("blend", 0.2)


def test_behind_a_prefix_hit_the_rest_of_a_span_is_blended_and_not_hashed() -> None:
    tracker, request = tracked({"share": 0.2})
    assert tracker.matched("a", 96) == 0
    assert tracker.cacheable("a", 200) == 96
    request.num_computed_tokens = 96
    loads = tracker.metadata({"a": 104}, lambda _: ([1, 2],)).loads
    assert [load.span for load in loads] == [CleanSpan(96, 150, "b", 46), SPANS[2]]
    tracker.preempted("a")
    # Its spans are let go of: they are looked up again.
    assert not tracker.ready("a")


def test_before_the_first_blended_token_pages_are_hashed() -> None:
    tracker, request = tracked({"share": 0.2})
    assert tracker.matched("a", 45) == 0
    assert tracker.cacheable("a", 200) == 50
    tracker.broken(request.request_id)
    tracker.preempted(request.request_id)
    assert tracker.matched("a", 45) == 0
    assert tracker.cacheable("a", 200) == 200
    assert tracker.chunk(request, 45, 100, running=False) == 100


def test_other_policies_skip_the_same_spans() -> None:
    tracker, _ = tracked({"boundary": 0})
    assert tracker.matched("a", 0) == 40
    assert tracker.matched("a", 50) == 140
    assert "policy" not in tracker.finished("a")
