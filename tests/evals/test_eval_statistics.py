"""Intervals hold what they claim, and the same seed draws the same ones."""

import numpy as np
import pytest

from vllm_redknot.evals.score import Place, Score, cells
from vllm_redknot.evals.statistics import compare


def test_intervals_of_95_percent_hold_the_true_mean_about_that_often() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        found = compare(None, draw.normal(3.0, 1.0, size=40).tolist(), seed=trial, name="a")
        held += found.redknot.low <= 3.0 <= found.redknot.high
    assert 178 <= held <= 198


def test_the_difference_is_paired() -> None:
    """Cases differ by far more than the engines: unpaired, the difference would drown."""
    stock = list(np.random.default_rng(1).normal(0.0, 10.0, size=30))
    found = compare(stock, [value + 0.1 for value in stock], seed=0, name="a")
    assert found.difference is not None
    assert found.difference.low == pytest.approx(0.1)
    assert found.difference.high == pytest.approx(0.1)
    assert found.within_noise is False
    assert found.stock is not None
    assert found.stock.high - found.stock.low > 5


def test_equal_engines_are_within_noise_and_five_cases_are_no_verdict() -> None:
    assert compare([1.0, 0.0] * 3, [1.0, 0.0] * 3, seed=0, name="a").within_noise is True
    assert compare([1.0] * 6, [0.0] * 6, seed=0, name="a").within_noise is False
    assert compare([1.0] * 5, [0.0] * 5, seed=0, name="a").within_noise is None
    assert compare(None, [1.0, 0.0] * 3, seed=0, name="a").within_noise is None


def test_the_same_seed_and_name_give_the_same_interval() -> None:
    values = np.random.default_rng(2).normal(size=20).tolist()
    first = compare(None, values, seed=7, name="a")
    assert compare(None, values, seed=7, name="a") == first
    assert compare(None, values, seed=8, name="a") != first
    assert compare(None, values, seed=7, name="b") != first


def test_values_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values of REDKNOT and 1 of stock"):
        compare([1.0], [1.0, 2.0], seed=0, name="a")
    with pytest.raises(ValueError, match="0 values"):
        compare([], [], seed=0, name="a")


def test_cells_have_every_depth_and_a_total_and_only_a_total_without_depths() -> None:
    scores = [Score(Place("needle", 1024, depth), "found", 1.0, 0.0) for depth in (0.1, 0.1, 0.9)]
    scores.append(Score(Place("essays", 1024), "kl", None, 0.25))
    found = {(cell["task"], cell["depth"]): cell for cell in cells(scores, seed=0)}
    assert {key: cell["n"] for key, cell in found.items()} == {
        ("essays", None): 1,
        ("needle", None): 3,
        ("needle", 0.1): 2,
        ("needle", 0.9): 1,
    }
    assert found["needle", None]["difference"] == {"value": -1.0, "low": -1.0, "high": -1.0}
    assert found["essays", None] == {
        "task": "essays",
        "metric": "kl",
        "length": 1024,
        "depth": None,
        "n": 1,
        "stock": None,
        "redknot": {"value": 0.25, "low": 0.25, "high": 0.25},
        "difference": None,
        "within_noise": None,
    }
