"""The budget of the reuse gate: what passes, what fails, and what is chance."""

from collections.abc import Sequence

import pytest

from vllm_redknot.evals.reuse_scores import figures
from vllm_redknot.evals.reuse_verdict import Check, Limits, chance, checks
from vllm_redknot.evals.score import Metric, Place, Score, Task

Pairs = Sequence[tuple[float, float]]
SAME: Pairs = [(1.0, 1.0)] * 20
HALF: Pairs = [(1.0, 1.0), (0.0, 0.0)] * 10


def scored(task: Task, metric: Metric, pairs: Pairs) -> list[Score]:
    place = None if task in ("squad", "hotpotqa") else 1.0
    return [Score(Place(task, 800, place), metric, dense, reuse) for dense, reuse in pairs]


def judged(
    found: Pairs = SAME,
    nll: Pairs = SAME,
    named: Pairs = SAME,
    named_nll: Pairs = SAME,
    f1: Pairs = HALF,
    limits: Limits = Limits(),  # noqa: B008
) -> list[Check]:
    scores = [
        *scored("needle", "found", found),
        *scored("needle", "nll", nll),
        *scored("named", "found", named),
        *scored("named", "nll", named_nll),
        *scored("squad", "f1", f1),
        *scored("hotpotqa", "f1", HALF),
    ]
    return checks(scores, figures(scores, seed=0), limits)


def failed(found: list[Check]) -> list[tuple[str, str]]:
    return [(check.task, check.metric) for check in found if not check.passed]


def test_equal_answers_pass_and_every_task_is_judged() -> None:
    found = judged()
    assert not failed(found)
    assert {(check.task, check.metric) for check in found} == {
        *(("needle", "found"), ("needle", "nll"), ("named", "found"), ("named", "nll")),
        *(("squad", "f1"), ("hotpotqa", "f1")),
    }


def test_one_needle_in_twenty_may_be_lost_but_not_two() -> None:
    lost = (1.0, 0.0)
    assert not failed(judged(found=[lost, *SAME[1:]]))
    two = judged(found=[lost, lost, *SAME[2:]])
    assert failed(two) == [("needle", "found")]
    (told,) = [check.told for check in two if not check.passed]
    assert told == (
        "needle found is 0.900, with everything computed 1.000, and the limit 0.950 (at least 95% of dense)"
    )
    assert not failed(judged(found=[lost, lost, *SAME[2:]], limits=Limits(recall=0.9)))


def test_a_model_that_finds_no_needle_with_everything_computed_cannot_pass() -> None:
    nothing = [(0.0, 0.0)] * 20
    assert failed(judged(found=nothing)) == [("needle", "found")]


def test_named_needles_fail_only_by_more_than_chance() -> None:
    lost, gained = (1.0, 0.0), (0.0, 1.0)
    assert not failed(judged(named=[lost] * 4 + list(HALF)))
    assert failed(judged(named=[lost] * 5 + list(HALF))) == [("named", "found")]
    assert not failed(judged(named=[lost] * 5 + [gained] * 2 + list(HALF)))


def test_likelihood_may_fall_by_the_budget() -> None:
    assert not failed(judged(nll=[(1.0, 1.04)] * 20))
    assert failed(judged(nll=[(1.0, 1.06)] * 20)) == [("needle", "nll")]
    assert failed(judged(named_nll=[(1.0, 1.06)] * 20)) == [("named", "nll")]
    noise = [(1.0, 3.0), (1.0, -0.7)] * 10
    assert not failed(judged(named_nll=noise))
    assert failed(judged(nll=noise)) == [("needle", "nll")]


def test_f1_may_not_fall_below_denses_interval_and_may_rise() -> None:
    assert not failed(judged(f1=[(dense, 1.0) for dense, _ in HALF]))
    assert not failed(judged(f1=[(1.0, 0.0), *HALF[1:]]))
    assert failed(judged(f1=[(dense, 0.0) for dense, _ in HALF])) == [("squad", "f1")]


@pytest.mark.parametrize(
    ("lost", "gained", "expected"), [(0, 0, 1.0), (5, 0, 1 / 32), (1, 0, 0.5), (2, 2, 11 / 16)]
)
def test_the_sign_test_counts_changed_answers(lost: int, gained: int, expected: float) -> None:
    assert chance(lost, gained) == expected
