"""Blend among other policies, chunks, faults and preemption: where it must equal them, and what a request may ask."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Engine, assert_same, count_preemptions
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

SETTINGS = {"policy": "blend", "min_reuse": 31}


class Case:
    """Two stored documents behind other tokens, and a question."""

    def __init__(self, server: Engine, world: World) -> None:
        self.server = server
        first, second, question = world.tokens(150), world.tokens(170), world.tokens(20)
        store_alone(server, first, second)
        self.prompt = [*question, *first, *second, *question]
        self.spans = marks(first, second, begin=20)
        self.dense = ask(server, self.prompt, "off").completion

    def answer(self, **wish: Any) -> Any:
        """Alone, without prefix hits."""
        assert self.server.llm.reset_prefix_cache()
        return ask(self.server, self.prompt, {"spans": self.spans, **wish})


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

    monkeypatch.setattr(Relocator, "load", fail)
    got = case.answer(share=0.1)
    assert (got.reused, got.details["faults"]) == (0, 1)
    assert_same([got.completion], [case.dense])
    monkeypatch.undo()
    assert case.answer(share=0.1).reused == 320 - round(0.1 * 320)
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


def test_preempted_requests_are_blended_again(world: World, tmp_path: Path) -> None:
    limits = {**LIMITS, "kv_cache_memory_bytes": 2_500_000, "max_num_batched_tokens": 96}
    documents = [world.tokens(length) for length in (97, 130, 255)]
    questions = []
    for number in range(6):
        order = [documents[(number + i) % 3] for i in range(2)]
        prompt = [*world.tokens(3), *(token for document in order for token in document), *world.tokens(20)]
        questions.append(Question(prompt, {"spans": marks(*order, begin=3), "share": 1.0}))
    with reusing(world.folder, tmp_path, world.heads, SETTINGS, **limits) as server:
        store_alone(server, *documents)
        dense = [ask(server, question.prompt, "off", max_tokens=150) for question in questions]
        server.llm.reset_prefix_cache()
        preempted = count_preemptions(server)
        got = ask_all(server, questions, max_tokens=150)
        assert preempted
        assert_same([a.completion for a in got], [a.completion for a in dense])
        few = [Question(question.prompt, {**question.control, "share": 0.1}) for question in questions]
        preempted.clear()
        got = ask_all(server, few, max_tokens=150)
        assert preempted
        assert all(answer.reused > 0 for answer in got)
        assert_nothing_held(server)


def test_a_server_for_boundaries_answers_with_one_and_says_so(world: World, tmp_path: Path) -> None:
    with reusing(world.folder, tmp_path, world.heads, {"min_reuse": 31}, **LIMITS) as server:
        case = Case(server, world)
        expected, got = case.answer(), case.answer(policy="blend")
        assert got.reused == expected.reused == 320 - 32
        assert got.details["problem"].startswith('policy "blend" is not served here')
        assert got.completion.logprobs == expected.completion.logprobs
        # What the two kinds of server store of local heads is not the same, so neither finds the other's.
        scope = worker().store.scope.name
    with reusing(world.folder, tmp_path, world.heads, SETTINGS, **LIMITS) as server:
        assert worker().store.scope.name != scope
        assert ask(server, case.prompt, {"spans": case.spans}).reused == 0
