"""Blend among other policies, chunks and faults: where it must equal them."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine.harness import Engine, assert_same
from tests.engine.reuse_blend_case import SETTINGS, Case
from tests.engine.reuse_engine import (
    Question,
    ask,
    ask_all,
    assert_nothing_held,
    marks,
    reusing,
    store_alone,
    worker,
)
from tests.engine.reuse_world import LIMITS, World
from vllm_redknot.reuse import worker as worker_module
from vllm_redknot.reuse.relocate import Relocator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[("global", 48), ("local", 48), ("local", 1024)], ids=str)
def server(
    request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    kind, chunk = request.param
    heads = world.heads if kind == "local" else "all-global"
    folder = tmp_path_factory.mktemp("store")
    with reusing(world.folder, folder, heads, SETTINGS, **LIMITS, max_num_batched_tokens=chunk) as started:
        yield started


@pytest.fixture
def case(server: Engine, world: World) -> Case:
    return Case(server, world)


def test_a_share_of_one_is_a_dense_answer(case: Case) -> None:
    got = case.answer(policy="blend", share=1.0)
    assert (got.reused, got.details["policy"], got.details["share"]) == (0, "blend", 1.0)
    assert_same([got.completion], [case.dense])


def test_a_share_of_zero_is_no_boundary(case: Case) -> None:
    none, got = case.answer(boundary=0), case.answer(share=0)
    assert none.reused == got.reused == 320
    assert_same([got.completion], [none.completion])
    assert got.completion.logprobs != case.dense.logprobs


def test_a_request_that_does_not_say_gets_the_servers_share(case: Case) -> None:
    got, said = case.answer(), case.answer(policy="blend", share=0.15)
    assert got.details == said.details
    assert got.details["share"] == 0.15
    assert got.completion.logprobs == said.completion.logprobs


def test_the_plain_hash_never_finds_blended_pages(case: Case) -> None:
    server = case.server
    expected = case.answer(share=0.2)
    after = ask(server, case.prompt, "off")
    assert after.completion.cached_tokens == 0
    assert_same([after.completion], [case.dense])
    # Now a prefix is cached, exact ones: what is left of a document is blended.
    server.llm.reset_prefix_cache()
    ask(server, case.prompt[:100], "off", max_tokens=1)
    behind = ask(server, case.prompt, {"spans": case.spans, "share": 1.0})
    assert behind.details["prefix_tokens"] == 96
    assert_same([behind.completion], [case.dense])
    assert case.answer(share=0.2).completion.logprobs == expected.completion.logprobs


def test_each_request_of_a_batch_has_its_policy(server: Engine, world: World) -> None:
    documents = [world.tokens(length) for length in (64, 97, 71)]
    store_alone(server, *documents)
    wishes: list[Any] = [
        {"share": 0.2},
        {"boundary": 0},
        "off",
        {"policy": "blend", "share": 0.5},
        {"policy": "boundary", "boundary": 8},
        {"share": 1},
    ]
    questions = []
    for number, wish in enumerate(wishes):
        order = [documents[(number + i) % 3] for i in range(3)]
        intro = world.tokens(5)
        prompt = [*intro, *(token for document in order for token in document), *world.tokens(9)]
        spans = {"spans": marks(*order, begin=5)}
        questions.append(Question(prompt, wish if wish == "off" else {**spans, **wish}))
    if server.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens < 1024:
        # How a document is cut, and so what is chosen of it, depends on who else is there.
        questions = [
            question for question in questions if question.control == "off" or "share" not in question.control
        ]
        questions.append(Question(questions[0].prompt, {**questions[0].control, "share": 1.0}))
        del questions[-1].control["boundary"]
    alone = [ask(server, *question) for question in questions]
    server.llm.reset_prefix_cache()
    together = ask_all(server, questions)
    assert [answer.details for answer in together] == [answer.details for answer in alone]
    assert_same([a.completion for a in together], [a.completion for a in alone])
    assert_nothing_held(server)


def test_a_load_that_fails_is_computed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("injected")

    before = case.answer(share=0.1)
    monkeypatch.setattr(Relocator, "load", fail)
    got = case.answer(share=0.1)
    assert (got.reused, got.details["faults"]) == (0, 1)
    assert_same([got.completion], [case.dense])
    monkeypatch.undo()
    after = case.answer(share=0.1)
    assert after.details == before.details
    assert after.completion.logprobs == before.completion.logprobs
    assert_nothing_held(case.server)


def test_rows_that_are_not_found_are_computed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise RuntimeError("injected")

    monkeypatch.setattr(worker_module, "rows_at", fail)
    got = case.answer(share=0.1)
    assert (got.reused, got.details["faults"]) == (0, 1)
    assert_same([got.completion], [case.dense])


def test_a_store_that_fails_leaves_a_dense_answer(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(worker().store), "acquire", lambda *_: None)
    got = case.answer(share=0.1)
    assert (got.reused, got.details["faults"]) == (0, 2)
    assert_same([got.completion], [case.dense])
