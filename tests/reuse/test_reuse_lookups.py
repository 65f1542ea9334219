"""Lookups beside the forward pass: answers, leases, and what happens to those nobody waits for any more."""

import threading
import time
from typing import Any

import numpy as np
import pytest

from vllm_redknot.reuse.finder import Match
from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.lookups import Lookups
from vllm_redknot.reuse.messages import Found, Lookup
from vllm_redknot.reuse.plan import CleanSpan
from vllm_redknot.reuse.scope import content_id
from vllm_redknot.reuse.spans import Span

LAYOUT = SegmentFormat((0,), 64, "float32", ((None,),), ((0,),))


class Stored:
    """A store of one document of 100 tokens, which stands at token 50 of every prompt."""

    def __init__(self) -> None:
        self.leases = 0
        self.gate = threading.Event()
        self.gate.set()
        self.has = True
        self.asked: Any = None
        self.error: Exception | None = None

    def find(self, tokens: Any, spans: Any = None) -> tuple[Match, ...]:
        del tokens
        self.asked = spans
        self.gate.wait(10)
        if self.error:
            raise self.error
        return (Match(50, 150, "a", 0),)

    def __contains__(self, content: str) -> bool:
        return content == content_id(range(50, 150))

    def acquire(self, content: str, deadline_s: float | None = None) -> Any:
        del content, deadline_s
        if not self.has:
            return None
        self.leases += 1
        store = self

        class Lease:
            class segment:  # noqa: N801
                num_tokens = 100

            def release(self) -> None:
                store.leases -= 1

        return Lease()


@pytest.fixture
def stored() -> Stored:
    return Stored()


@pytest.fixture
def lookups(stored: Stored) -> Any:
    made = Lookups(stored, LAYOUT, min_tokens=31)
    yield made
    stored.gate.set()
    made.close()


def lookup(ticket: int, *spans: Span, boundary: int = 16) -> Lookup:
    return Lookup(ticket, np.arange(200, dtype=np.int32), spans, boundary)


def wait(lookups: Lookups) -> list[Found]:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if answers := lookups.answers():
            return answers
        time.sleep(0.001)
    raise AssertionError("no answer")


def test_an_answer_has_spans_behind_the_boundary_and_leases_until_the_ticket_is_released(
    lookups: Lookups, stored: Stored
) -> None:
    lookups.ask(lookup(1))
    assert wait(lookups) == [Found(1, (CleanSpan(66, 150, "a", 16),), (), 0)]
    assert stored.leases == 1
    assert lookups.segment(1, "a").num_tokens == 100
    lookups.release(1)
    lookups.release(1)
    assert stored.leases == 0
    assert lookups.answers() == []


def test_what_is_found_and_not_used_is_not_leased(lookups: Lookups, stored: Stored) -> None:
    lookups.ask(lookup(1, boundary=100))
    assert wait(lookups) == [Found(1, (), (), 0)]
    assert stored.leases == 0


def test_marked_documents_that_are_mostly_not_stored_are_missing(lookups: Lookups) -> None:
    lookups.ask(lookup(1, Span(0, 45), Span(48, 151), Span(160, 200)))
    (answer,) = wait(lookups)
    assert answer.missing == (Span(0, 45), Span(160, 200))


def test_without_reuse_every_document_that_is_not_stored_exactly_is_missing(
    lookups: Lookups, stored: Stored
) -> None:
    stored.error = RuntimeError("not to be searched")
    documents = (Span(0, 45), Span(50, 150), Span(150, 200))
    lookups.ask(Lookup(1, np.arange(200, dtype=np.int32), documents, 16, reuse=False))
    assert wait(lookups) == [Found(1, (), (Span(0, 45), Span(150, 200)), 0)]
    assert stored.leases == 0


def test_a_segment_that_cannot_be_had_is_a_fault_and_missing(lookups: Lookups, stored: Stored) -> None:
    stored.has = False
    lookups.ask(lookup(1, Span(50, 150)))
    assert wait(lookups) == [Found(1, (), (Span(50, 150),), 1)]


def test_an_error_is_a_fault(lookups: Lookups, stored: Stored) -> None:
    stored.error = RuntimeError("injected")
    lookups.ask(lookup(1))
    assert wait(lookups) == [Found(1, (), (), 1)]


def test_a_ticket_released_before_its_answer_leaves_no_lease_and_no_answer(
    lookups: Lookups, stored: Stored
) -> None:
    stored.gate.clear()
    lookups.ask(lookup(1))
    lookups.release(1)
    stored.gate.set()
    lookups.ask(lookup(2))
    assert [answer.ticket for answer in wait(lookups)] == [2]
    assert stored.leases == 1


def by_texts(stored: Stored, *texts: str, tokenizer: bool = True, reuse: bool = True) -> Found:
    """The answer for texts of numbers, which are their tokens."""

    def tokens_of(text: str) -> Any:
        return np.asarray(text.split(), dtype=np.int32)

    lookups = Lookups(stored, LAYOUT, 31, tokens_of if tokenizer else None)
    try:
        lookups.ask(Lookup(1, np.arange(200, dtype=np.int32), (), 16, texts, reuse))
        (answer,) = wait(lookups)
    finally:
        lookups.close()
    return answer


def numbers(begin: int, end: int) -> str:
    return " ".join(map(str, range(begin, end)))


def test_texts_are_marked_documents_once_they_are_found(stored: Stored) -> None:
    answer = by_texts(stored, numbers(48, 151), numbers(300, 400), numbers(0, 45))
    assert stored.asked == (Span(0, 45), Span(48, 151))
    assert answer == Found(
        1,
        (CleanSpan(66, 150, "a", 16),),
        (Span(0, 45),),
        0,
        "not found in the prompt, and left out: texts[1]",
    )


def test_where_no_text_is_found_nothing_is_looked_for(stored: Stored) -> None:
    by_texts(stored, numbers(300, 400))
    assert stored.asked == ()


def test_without_reuse_texts_that_are_not_stored_exactly_are_missing(stored: Stored) -> None:
    answer = by_texts(stored, numbers(0, 45), numbers(50, 150), reuse=False)
    assert answer == Found(1, (), (Span(0, 45),), 0)


def test_without_a_tokenizer_texts_find_nothing_and_the_answer_says_so(stored: Stored) -> None:
    stored.error = RuntimeError("not to be searched")
    answer = by_texts(stored, numbers(50, 150), tokenizer=False)
    assert (answer.spans, answer.missing, answer.faults) == ((), (), 0)
    assert "the engine has no tokenizer: mark documents by spans" in answer.problem


def test_closing_ends_all_leases(stored: Stored) -> None:
    lookups = Lookups(stored, LAYOUT, min_tokens=31)
    lookups.ask(lookup(1))
    wait(lookups)
    lookups.close()
    assert stored.leases == 0
