"""From runs found in a prompt to the spans that are skipped, under each repair policy."""

import random

import pytest
import torch

from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.pages import HeadKind
from vllm_redknot.reuse.plan import CleanSpan, Run, plan_spans
from vllm_redknot.reuse.policy import Boundary, NoRepair, repair_policy
from vllm_redknot.reuse.relocate import visible_tokens


def layout(*heads: tuple[int | None, int]) -> SegmentFormat:
    return SegmentFormat(
        (0,), 64, "float32", (tuple(window for window, _ in heads),), (tuple(sink for _, sink in heads),)
    )


GLOBAL = layout((None, 0))
LOCAL = layout((None, 0), (32, 4))


def test_a_moved_run_loses_its_boundary_and_one_at_the_start_loses_nothing() -> None:
    runs = [Run("a", 100, 0, 0, 100), Run("b", 80, 0, 100, 80)]
    assert plan_spans(runs, GLOBAL, Boundary(16), 200) == (
        CleanSpan(0, 100, "a", 0),
        CleanSpan(116, 180, "b", 16),
    )
    assert plan_spans(runs, GLOBAL, NoRepair(), 200)[1] == CleanSpan(100, 180, "b", 0)


def test_the_last_token_of_a_prompt_is_computed() -> None:
    assert plan_spans([Run("a", 100, 0, 0, 100)], GLOBAL, NoRepair(), 100) == (CleanSpan(0, 99, "a", 0),)


def test_what_local_heads_have_dropped_is_not_planned() -> None:
    # The window of the token behind the run begins in what is kept: a token short of the end is one too many.
    assert plan_spans([Run("a", 100, 0, 0, 100)], LOCAL, NoRepair(), 150)
    assert not plan_spans([Run("a", 100, 0, 0, 60)], LOCAL, NoRepair(), 150)
    # Sinks of the sequence that are not the segment's first tokens are not there.
    assert not plan_spans([Run("a", 100, 50, 0, 50)], LOCAL, NoRepair(), 150)
    assert plan_spans([Run("a", 100, 50, 4, 50)], LOCAL, NoRepair(), 150)


def test_short_and_overlapping_runs_are_left_out() -> None:
    runs = [Run("a", 100, 0, 0, 100), Run("b", 100, 0, 90, 100), Run("c", 31, 0, 200, 31)]
    assert [span.content for span in plan_spans(runs, GLOBAL, Boundary(16), 300)] == ["a"]
    assert [span.content for span in plan_spans(runs, GLOBAL, NoRepair(), 300)] == ["a", "c"]


def test_policies_by_their_setting() -> None:
    assert repair_policy(0) == NoRepair()
    assert repair_policy(16) == Boundary(16)
    assert Boundary(16).recomputed(5, 0, 10) == 10
    assert Boundary(16).recomputed(0, 0, 10) == 0


def test_a_part_of_a_document_that_begins_a_prompt_loses_its_boundary() -> None:
    runs = [Run("a", 200, 40, 0, 100)]
    assert plan_spans(runs, GLOBAL, Boundary(16), 200) == (CleanSpan(16, 100, "a", 56),)
    assert plan_spans(runs, GLOBAL, NoRepair(), 200) == (CleanSpan(0, 100, "a", 40),)


def test_a_span_that_begins_later_keeps_its_place_in_the_segment() -> None:
    assert CleanSpan(116, 180, "b", 16).after(120) == CleanSpan(120, 180, "b", 20)
    assert CleanSpan(116, 180, "b", 16).after(0) == CleanSpan(116, 180, "b", 16)


@pytest.mark.parametrize("seed", range(50))
def test_what_is_loaded_is_what_later_queries_see_and_it_is_kept(seed: int) -> None:
    draw = random.Random(seed)
    window, sink = draw.choice([1, 7, 20, 90]), draw.choice([0, 3, 30])
    kept = layout((window, sink))
    length, begin = draw.randint(40, 120), draw.choice([0, 0, 2, 40])
    runs = [Run("a", length, 0, begin, length)]
    for span in plan_spans(runs, kept, repair_policy(draw.choice([0, 5, 16])), begin + length + 20):
        reader = span.end + draw.choice([0, 0, 9])
        for kind in (HeadKind(0, None, 0), HeadKind(0, window, sink)):
            loaded = set((visible_tokens(kind, span, reader) - span.offset + span.begin).tolist())
            seen = {
                key
                for key in range(span.begin, span.end)
                if kind.window is None or reader - key < window or key < sink
            }
            assert loaded == seen
        rows = kept.kept(0, 0, length)
        for token in visible_tokens(HeadKind(0, window, sink), span, reader).tolist():
            assert token < rows.first or token >= rows.tail_begin
    assert torch.equal(visible_tokens(HeadKind(0, 1, 0), CleanSpan(5, 9, "a", 2), 9), torch.arange(0))
