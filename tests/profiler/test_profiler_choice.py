"""Which windows are chosen for a budget."""

import itertools
import random

import pytest

from vllm_redknot.profiler.choose import (
    choose_by_fraction,
    choose_by_share,
    kept_share,
    steps_by_density,
    tokens_kept,
)

WINDOWS = (4, 16, None)
CONTEXT = 64


def worth(profile: object, values: list[list[list[float]]], windows: tuple[int | None, ...]) -> float:
    total = 0.0
    for row, heads in enumerate(profile.window):  # type: ignore[attr-defined]
        for head, window in enumerate(heads):
            total += sum(values[row][head][: windows.index(window)])
    return total


def test_a_head_of_no_value_keeps_the_smallest_window() -> None:
    steps = steps_by_density([[[0.0, 0.0], [0.0, -1.0]]], WINDOWS, 0, CONTEXT)
    assert steps == []
    assert choose_by_share(steps, (0,), 2, 4, 0, CONTEXT, 1.0).window == ((4, 4),)


def test_a_poor_step_before_a_rich_one_is_taken_together_with_it() -> None:
    (step,) = steps_by_density([[[0.01, 5.0]]], WINDOWS, 0, CONTEXT)
    assert (step.window, step.value, step.cost) == (None, 5.01, CONTEXT - 4)


def test_rich_steps_come_first_and_a_head_never_skips_one() -> None:
    steps = steps_by_density([[[3.0, 1.0], [0.0, 9.0]]], WINDOWS, 0, CONTEXT)
    assert [(step.head, step.window) for step in steps] == [(0, 16), (1, None), (0, None)]


@pytest.mark.parametrize("seed", range(8))
def test_within_one_step_of_the_best_choice_there_is(seed: int) -> None:
    draw = random.Random(seed)
    values = [[[draw.random() * 5, draw.random() * 20] for _ in range(2)] for _ in range(3)]
    share = draw.uniform(0.2, 0.8)
    steps = steps_by_density(values, WINDOWS, 2, CONTEXT)
    chosen = choose_by_share(steps, (0, 1, 2), 2, 4, 2, CONTEXT, share)
    assert kept_share(chosen, CONTEXT) <= share
    budget = share * CONTEXT * 6
    best = max(
        sum(sum(values[i // 2][i % 2][: WINDOWS.index(window)]) for i, window in enumerate(windows))
        for windows in itertools.product(WINDOWS, repeat=6)
        if sum(tokens_kept(window, 2, CONTEXT) for window in windows) <= budget
    )
    assert worth(chosen, values, WINDOWS) >= best - max(step.value for step in steps)


def test_a_fraction_of_heads_is_global_and_the_earlier_of_equals() -> None:
    chosen = choose_by_fraction([[[1.0, 0.0], [2.0, 2.0]], [[1.0, 0.0], [0.0, 0.0]]], (0, 5), 8, 4, 0.5)
    assert chosen.window == ((None, None), (8, 8))
    assert chosen.sink == ((0, 0), (4, 4))
