"""The prompts of the reuse gate: documents that stand where they are said to, and how much of them is reused."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vllm_redknot.evals.reuse_cases import SHORTEST, ReuseCase, ReuseChoices, reuse_cases
from vllm_redknot.evals.reuse_requests import ReuseRequest, reusable, reuse_request_from_json, spared

CHOICES = ReuseChoices(
    boundary=16, documents=4, document_tokens=150, texts=2, questions=6, length=700, seed=0
)


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_path / "tokenizer.json"))


@pytest.fixture(scope="module")
def cases(tokenizer: Tokenizer) -> list[ReuseCase]:
    return list(reuse_cases(tokenizer, CHOICES))


def of_task(cases: list[ReuseCase], task: str) -> list[ReuseCase]:
    return [case for case in cases if case.reuse.key.split("/")[1] == task]


def documents(request: ReuseRequest) -> list[tuple[int, ...]]:
    return [request.prompt[begin:end] for begin, end in request.documents]


def test_each_prompt_is_asked_twice_and_only_once_from_the_store(cases: list[ReuseCase]) -> None:
    assert len({request.key for case in cases for request in case[:2]}) == 2 * len(cases)
    for dense, reuse, _ in cases:
        assert (dense.prompt, dense.forced, dense.stop) == (reuse.prompt, reuse.forced, reuse.stop)
        assert (dense.documents, dense.policy, dense.reused) == ((), None, 0)
        assert reuse.policy == {"boundary": 16}
        assert reuse.documents
        assert all(end - begin >= SHORTEST for begin, end in reuse.documents)


def test_every_task_has_as_many_cases_as_were_asked_for(cases: list[ReuseCase]) -> None:
    found = Counter(case.reuse.key.split("/")[1] for case in cases)
    assert found == {"needle": 8, "named": 8, "squad": 6, "hotpotqa": 6}


@pytest.mark.parametrize("task", ["needle", "named"])
def test_the_document_that_tells_stands_at_every_place(
    task: str, cases: list[ReuseCase], tokenizer: Tokenizer
) -> None:
    seen = Counter[int]()
    for case in of_task(cases, task):
        place = int(case.reuse.key.rsplit("/", 1)[1])
        seen[place] += 1
        told = [tokenizer.decode(list(document)) for document in documents(case.reuse)]
        assert [len(document) for document in documents(case.reuse)] == [150] * 4
        code = tokenizer.decode(list(case.reuse.forced)).strip()
        assert [code in text for text in told] == [index == place for index in range(4)]
        # Whoever asks for a name is not told it by the sentence that asks.
        assert tokenizer.decode(list(case.reuse.prompt[600:])).endswith("passcode is")
    assert seen == dict.fromkeys(range(4), 2)


def test_the_cases_of_one_text_are_the_same_documents_in_other_orders(cases: list[ReuseCase]) -> None:
    first = of_task(cases, "needle")[:4]
    assert len({frozenset(documents(case.reuse)) for case in first}) == 1
    assert len({tuple(documents(case.reuse)) for case in first}) == 4


def test_paragraphs_of_a_question_are_documents_and_tell_the_answer(
    cases: list[ReuseCase], tokenizer: Tokenizer
) -> None:
    for case in of_task(cases, "squad"):
        assert len(case.reuse.prompt) <= 700
        assert len(case.reuse.documents) >= 2
        text = tokenizer.decode([token for document in documents(case.reuse) for token in document])
        assert tokenizer.decode(list(case.reuse.forced)).strip() in text


def test_equal_choices_give_equal_cases_and_another_seed_others(tokenizer: Tokenizer) -> None:
    small = replace(CHOICES, texts=1, questions=1)
    again = [[case[:2] for case in reuse_cases(tokenizer, choices)] for choices in (small, small)]
    assert again[0] == again[1]
    other = [case.dense.prompt for case in reuse_cases(tokenizer, replace(small, seed=1))]
    assert not {case[0].prompt for case in again[0]} & set(other)


def test_a_document_too_short_for_what_it_tells_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="a document has 20 tokens: what it must tell takes"):
        list(reuse_cases(tokenizer, replace(CHOICES, document_tokens=20)))


@pytest.mark.parametrize(
    ("spans", "boundary", "tokens"),
    [
        # The document that begins the prompt is where it was stored.
        ([(0, 100), (100, 200)], 16, 100 + 84),
        ([(5, 100), (100, 200)], 16, 79 + 84),
        ([(0, 100), (100, 200)], 0, 200),
        ([(0, 100), (100, 200)], 1000, 100),
        # What is left of the second is too short for a step of its own.
        ([(0, 100), (100, 200)], 85, 100),
        ([], 16, 0),
    ],
)
def test_tokens_that_must_come_from_the_store(
    spans: list[tuple[int, int]], boundary: int, tokens: int
) -> None:
    assert reusable(spans, boundary) == tokens


@pytest.mark.parametrize(
    ("spans", "share", "tokens"),
    [
        ([(0, 100), (100, 200)], 0.15, 100 + 85),
        ([(5, 100), (100, 200)], 1.0, 0),
        ([(5, 100), (100, 200)], 0.0, 195),
    ],
)
def test_tokens_that_blend_must_take_from_the_store(
    spans: list[tuple[int, int]], share: float, tokens: int
) -> None:
    assert spared(spans, share) == tokens


def test_with_a_share_the_same_prompts_ask_for_blend(cases: list[ReuseCase], tokenizer: Tokenizer) -> None:
    blend = list(reuse_cases(tokenizer, replace(CHOICES, boundary=0, share=0.15)))
    assert [case.reuse.prompt for case in blend] == [case.reuse.prompt for case in cases]
    assert all(case.reuse.policy == {"policy": "blend", "share": 0.15} for case in blend)
    assert all(case.reuse.reused == spared(case.reuse.documents, 0.15) for case in blend)


def test_a_request_passes_between_processes_unchanged(cases: list[ReuseCase]) -> None:
    for request in cases[0][:2]:
        assert reuse_request_from_json(request.to_json()) == request
