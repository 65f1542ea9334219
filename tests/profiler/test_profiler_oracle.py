"""The profiler on a model whose retrieval heads are known."""

import random

import pytest
import torch
from retrieval_model import LAYERS, VOCABULARY, write_model
from written_model import HEADS

from vllm_redknot.evals.cases import Case
from vllm_redknot.heads.profile import HeadClass
from vllm_redknot.profiler.choose import choose_by_fraction, choose_by_share, steps_by_density
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.journal import open_journal
from vllm_redknot.profiler.masked import ProfiledAttention, dense_attention
from vllm_redknot.profiler.quality import answers
from vllm_redknot.profiler.scores import HeadScores, score_heads

WINDOWS = (16, 64)
POINTS = (0.1, 0.3, 0.5, 0.7, 0.9)


def recall_cases(number: int) -> list[Case]:
    """Random tokens with one pair A B early on and A at the end; B is the answer."""
    cases = []
    for seed in range(number):
        draw = random.Random(seed)
        tokens = [draw.randrange(VOCABULARY - 2) for _ in range(300)]
        at = draw.randrange(20, 150)
        tokens[at : at + 2] = [VOCABULARY - 1, draw.randrange(VOCABULARY - 2)]
        cases.append(Case("needle", (*tokens, VOCABULARY - 1), (tokens[at + 1],), (at, at + 2)))
    return cases


@pytest.fixture(scope="module", params=[((1, 0),), ((2, 1),), ((1, 0), (3, 1))], ids=str)
def scored(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HookedModel, HeadScores, set[tuple[int, int]]]:
    folder = tmp_path_factory.mktemp("retrieval")
    write_model(folder, request.param)
    model = HookedModel(folder, torch.float32)
    with open_journal(folder / "journal", {}) as journal:
        scores = score_heads(model, recall_cases(4), WINDOWS, 4, POINTS, journal, lambda: None)
    return model, scores, set(request.param)


def best(matrix: list[list[float]], number: int) -> set[tuple[int, int]]:
    places = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    return set(sorted(places, key=lambda place: -matrix[place[0]][place[1]])[:number])


def test_the_model_recalls_whatever_the_distance(
    scored: tuple[HookedModel, HeadScores, set[tuple[int, int]]],
) -> None:
    model, _, _ = scored
    assert all(answer.found for answer in answers(model, dense_attention, recall_cases(6)))


def test_every_score_puts_exactly_the_retrieval_heads_first(
    scored: tuple[HookedModel, HeadScores, set[tuple[int, int]]],
) -> None:
    _, scores, retrieval = scored
    totals = [[sum(steps) for steps in heads] for heads in scores.values["needle"]]
    for matrix in (totals, scores.mass["needle"], scores.deviation["needle"]):
        assert best(matrix, len(retrieval)) == retrieval
    worth = [totals[layer][head] for layer, head in retrieval]
    others = sum(map(sum, totals)) - sum(worth)
    assert min(worth) > 0.2
    assert abs(others) < 0.01


def test_values_add_up_to_what_the_smallest_windows_cost(
    scored: tuple[HookedModel, HeadScores, set[tuple[int, int]]],
) -> None:
    model, scores, _ = scored
    cases = recall_cases(4)
    local = choose_by_fraction(scores.values["needle"], tuple(range(LAYERS)), WINDOWS[0], 4, 0.0)
    dense = [answer.nll for answer in answers(model, dense_attention, cases)]
    restricted = [answer.nll for answer in answers(model, ProfiledAttention(local), cases)]
    lost = (sum(restricted) - sum(dense)) / len(cases)
    assert sum(sum(steps) for heads in scores.values["needle"] for steps in heads) == pytest.approx(
        lost, rel=0.15
    )


def test_the_chosen_profile_makes_exactly_the_retrieval_heads_global_and_recalls(
    scored: tuple[HookedModel, HeadScores, set[tuple[int, int]]],
) -> None:
    model, scores, retrieval = scored
    values, layers = scores.values["needle"], tuple(range(LAYERS))
    fraction = len(retrieval) / (LAYERS * HEADS)
    by_share = choose_by_share(
        steps_by_density(values, (*WINDOWS, None), 4, 2048),
        layers,
        HEADS,
        WINDOWS[0],
        4,
        2048,
        fraction + 0.02,
    )
    for profile in (choose_by_fraction(values, layers, WINDOWS[0], 4, fraction), by_share):
        found = {
            (layer, head)
            for layer in layers
            for head in range(HEADS)
            if profile.head_class(layer, head) is HeadClass.GLOBAL
        }
        assert found == retrieval
        assert all(answer.found for answer in answers(model, ProfiledAttention(profile), recall_cases(6)))


def test_without_its_retrieval_heads_the_model_recalls_nothing(
    scored: tuple[HookedModel, HeadScores, set[tuple[int, int]]],
) -> None:
    model, scores, _ = scored
    local = choose_by_fraction(scores.values["needle"], tuple(range(LAYERS)), WINDOWS[1], 4, 0.0)
    assert not any(answer.found for answer in answers(model, ProfiledAttention(local), recall_cases(6)))
