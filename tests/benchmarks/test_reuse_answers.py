"""When two answers are the same, and which documents an answer can have reused."""

import math
from dataclasses import replace

import pytest

from benchmarks.reuse_answers import Answer, difference, reused_sets

BASE = Answer((5, 6), (-0.5, -0.7), ({5: -0.5, 7: -1.2}, {6: -0.7, 8: -0.7001}), 0, 0)


def test_equal_answers_differ_by_their_logprobs_alone() -> None:
    assert difference(BASE, BASE) == 0
    assert difference(replace(BASE, logprobs=(-0.5, -0.75)), BASE) == pytest.approx(0.05)


def test_tokens_may_differ_where_both_are_as_likely() -> None:
    tie = replace(
        BASE, tokens=(5, 8), logprobs=(-0.5, -0.69995), likeliest=(BASE.likeliest[0], {8: -0.69995, 6: -0.7})
    )
    assert difference(tie, BASE) == pytest.approx(0.00015)
    other = replace(BASE, tokens=(7, 8), logprobs=(-0.5, -0.7), likeliest=({7: -0.5, 5: -1.2}, {8: -0.7}))
    assert difference(other, BASE) == pytest.approx(0.7)
    strange = replace(BASE, tokens=(9, 6))
    assert difference(strange, BASE) == math.inf


def test_answers_of_other_lengths_are_different() -> None:
    assert difference(replace(BASE, tokens=(5,), logprobs=(-0.5,)), BASE) == math.inf


def test_all_sets_of_documents_that_add_up_are_named_largest_first() -> None:
    spans = [[0, 50], [50, 116], [116, 176], [176, 190]]
    assert list(reused_sets(spans, 16, 50 + 50 + 44)) == [(0, 1, 2)]
    assert list(reused_sets(spans, 16, 50)) == [(0,), (1,)]
    assert list(reused_sets(spans, 16, 0)) == [()]
    assert list(reused_sets(spans, 16, 7)) == []
    # The last is too short behind its boundary to be reused.
    assert all(3 not in places for places in reused_sets(spans, 0, 50))
