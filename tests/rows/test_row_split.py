"""Which rows of a step may skip: a matter of positions, never of how the scheduler cut a prompt."""

from __future__ import annotations

import random

from vllm_redknot.rows.plan import Span, split_step
from vllm_redknot.rows.schedule import RowSchedule

SCHEDULE = RowSchedule.parse({"ffn_from": 1, "sink": 4, "recent": 16})


def positions(spans: list[Span], request: int) -> list[int]:
    """Of the rows of one request."""
    return [
        p for span in spans if span.request == request for p in range(span.seq_len - span.rows, span.seq_len)
    ]


def test_a_prompt_in_one_step_keeps_its_two_ends() -> None:
    kept, skipping = split_step([0, 100], [100], [100], SCHEDULE)
    assert kept == [Span(0, 0, 4, 4), Span(0, 84, 100, 100)]
    assert skipping == [Span(0, 4, 84, 84)]


def test_a_chunk_in_the_middle_of_a_prompt_keeps_nothing() -> None:
    assert split_step([0, 50], [150], [1000], SCHEDULE) == ([], [Span(0, 0, 50, 150)])


def test_short_prompts_decodes_and_requests_that_do_not_skip_keep_all() -> None:
    row_starts, seq_lens, prompt_lens = [0, 20, 21, 121], [20, 501, 100], [20, 500, 0]
    kept, skipping = split_step(row_starts, seq_lens, prompt_lens, SCHEDULE)
    assert kept == [Span(0, 0, 20, 20), Span(1, 20, 21, 501), Span(2, 21, 121, 100)]
    assert skipping == []


def test_a_prompt_that_is_computed_again_with_its_answer_keeps_the_answer() -> None:
    kept, skipping = split_step([0, 130], [130], [100], SCHEDULE)
    assert positions(kept, 0) == [*range(4), *range(84, 130)]
    assert positions(skipping, 0) == list(range(4, 84))


def test_any_chunks_and_any_batch_skip_the_same_positions() -> None:
    rng = random.Random(0)
    for _ in range(300):
        prompts = [rng.choice([1, 19, 20, 21, 40, 200]) for _ in range(3)]
        done = [rng.choice([0, 0, 5]) if prompt > 5 else 0 for prompt in prompts]
        start = list(done)
        skipped: list[list[int]] = [[], [], []]
        kept_positions: list[list[int]] = [[], [], []]
        while any(d < p for d, p in zip(done, prompts, strict=True)):
            chunks = [min(rng.randint(0, 30), p - d) for d, p in zip(done, prompts, strict=True)]
            row_starts = [0, chunks[0], chunks[0] + chunks[1], sum(chunks)]
            done = [d + c for d, c in zip(done, chunks, strict=True)]
            kept, skipping = split_step(row_starts, done, prompts, SCHEDULE)
            rows = sorted(r for span in kept + skipping for r in range(span.start, span.stop))
            assert rows == list(range(sum(chunks)))
            for request in range(3):
                skipped[request] += positions(skipping, request)
                kept_positions[request] += positions(kept, request)
        for request, prompt in enumerate(prompts):
            expected = [p for p in range(start[request], prompt) if 4 <= p < prompt - 16]
            assert skipped[request] == expected
            assert sorted(kept_positions[request] + expected) == list(range(start[request], prompt))
