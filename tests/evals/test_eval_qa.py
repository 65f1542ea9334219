"""Scores are those of the official scripts; prompts hold what tells the answer, at a place of no meaning."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vllm_redknot.evals.qa import DATA_SETS, DataSet, read_questions
from vllm_redknot.evals.qa_items import qa_items, qa_scores
from vllm_redknot.evals.qa_scores import exact_match, f1
from vllm_redknot.evals.requests import Answer


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_path / "tokenizer.json"))


def test_scores_equal_those_of_another_implementation() -> None:
    metrics = pytest.importorskip("transformers.data.metrics.squad_metrics")
    words = [
        "the",
        "a",
        "Norman",
        "norman.",
        "10th",
        "century",
        "U.S.",
        "\u2013",
        "and",
        "New  York",
        "an",
        "it's",
    ]
    draw = random.Random(0)
    some = 0
    for _ in range(2000):
        answer, right = (" ".join(draw.choices(words, k=draw.randrange(0, 5))) for _ in range(2))
        assert f1(answer, [right]) == pytest.approx(metrics.compute_f1(right, answer))
        assert exact_match(answer, [right]) == metrics.compute_exact(right, answer)
        some += 0 < f1(answer, [right]) < 1
    assert some > 300


def test_the_best_accepted_answer_counts_and_yes_is_right_as_a_whole() -> None:
    assert f1("in the 10th century", ["10th century", "the 11th"]) == pytest.approx(0.8)
    assert exact_match("The Normans.", ["Vikings", "normans"]) == 1.0
    assert f1("yes", ["Yes."]) == 1.0
    assert f1("yes they were", ["yes"]) == 0.0
    assert f1("no idea", ["the idea of"]) > 0.3


def test_data_sets_are_whole() -> None:
    squad, hotpotqa = (read_questions(name) for name in DATA_SETS)
    assert len(squad.questions) == 5928
    assert len(hotpotqa.questions) == 7405
    for known, told in ((squad, 1), (hotpotqa, 2)):
        assert {len(question.paragraphs) for question in known.questions} == {told}
        assert all(question.accepted for question in known.questions)
        assert set(known.questions[17].paragraphs) <= set(known.paragraphs)
        assert len(set(known.paragraphs)) == len(known.paragraphs)
    asked = squad.questions[0]
    assert asked.text == "In what country is Normandy located?"
    assert asked.accepted == ("France",)
    assert "a region in France" in asked.paragraphs[0]


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_prompts_fill_their_length_and_hold_what_tells_the_answer_anywhere(
    tokenizer: Tokenizer, data_set: DataSet
) -> None:
    known = read_questions(data_set)
    items = [item for item in qa_items(tokenizer, [700, 1500], 1, 30) if item.place.task == data_set]
    assert len(items) == 60
    places = []
    for item in items:
        assert item.place.length - 200 < len(item.request.prompt) <= item.place.length
        text = tokenizer.decode(list(item.request.prompt))
        index = int(item.request.key.rsplit("/", 1)[1])
        question = known.questions[index]
        assert item.accepted == question.accepted
        for paragraph in question.paragraphs:
            assert text.count(paragraph) == 1
        assert question.text in text[-400:]
        assert tokenizer.decode(list(item.request.forced)).strip() in question.accepted[0]
        places.append(text.index(question.paragraphs[0]) / len(text))
    assert min(places) < 0.1
    assert max(places) > 0.6


def test_every_length_asks_the_same_questions_and_the_seed_draws_them(tokenizer: Tokenizer) -> None:
    items = list(qa_items(tokenizer, [700, 900], 1, 5))

    def asked(length: int) -> list[str]:
        return [item.request.key.replace(f"/{length}/", "/") for item in items if item.place.length == length]

    assert asked(700) == asked(900)
    assert [item.request for item in qa_items(tokenizer, [700, 900], 1, 5)] == [
        item.request for item in items
    ]
    assert [item.request.key for item in qa_items(tokenizer, [700, 900], 2, 5)] != [
        item.request.key for item in items
    ]


def test_a_length_without_room_for_any_question_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="length is 20: no question of squad fits"):
        list(qa_items(tokenizer, [20], 0, 5))


def test_scores_of_a_case(tokenizer: Tokenizer) -> None:
    (item, *_) = qa_items(tokenizer, [700], 0, 1)
    stock, redknot = Answer("a", item.accepted[0], (-1.0, -2.0)), Answer("a", "?", (-2.0, -4.0))
    found = {score.metric: (score.stock, score.redknot) for score in qa_scores(item, stock, redknot)}
    assert found == {"f1": (1.0, 0.0), "exact match": (1.0, 0.0), "nll": (1.5, 3.0)}
