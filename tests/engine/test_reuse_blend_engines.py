"""Blend in engines of their own: preemption, and a server that does not serve it."""

from pathlib import Path

import pytest

from tests.engine.harness import assert_same, count_preemptions
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

pytestmark = pytest.mark.slow


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
