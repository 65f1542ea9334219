"""Reuse with batches, chunks, several samples, preemption and aborts: the same answers, and no page lost.

All of it without row skipping and with it.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Engine, assert_same, count_preemptions
from tests.engine.reuse_engine import (
    Question,
    ask,
    ask_all,
    assert_nothing_held,
    connector,
    marks,
    params,
    reusing,
    store_alone,
)
from tests.engine.reuse_world import LIMITS, World

pytestmark = pytest.mark.slow

ROWS = {"ffn_from": 1, "attention_from": 2, "sink": 3, "recent": 30}
Settings = dict[str, Any]


@pytest.fixture(scope="module", params=["every row", "late rows"])
def settings(request: pytest.FixtureRequest) -> Settings:
    """Of all engines that are compared. Questions are shorter than `recent`: some documents' ends are among those."""
    return {"min_reuse": 31, "rows": ROWS if request.param == "late rows" else "off"}


@pytest.fixture(scope="module")
def documents(world: World) -> list[list[int]]:
    """Lengths around pages, windows and chunks."""
    return [world.tokens(length) for length in (64, 97, 130, 255, 300)]


@pytest.fixture(scope="module")
def questions(world: World, documents: list[list[int]]) -> list[Question]:
    """Prompts that share documents in different orders, with tokens between some of them."""
    orders = [(0, 1, 2), (2, 1, 0), (4,), (3, 0), (1, 4), (2, 3, 1)]
    result = []
    for number, order in enumerate(orders):
        chosen = [documents[i] for i in order]
        intro = world.tokens(7 * number)
        prompt = [*intro, *(token for document in chosen for token in document), *world.tokens(20)]
        result.append(
            Question(prompt, {"spans": marks(*chosen, begin=len(intro)), "boundary": number % 3 * 8})
        )
    return result


@pytest.fixture(scope="module")
def expected(
    world: World,
    documents: list[list[int]],
    questions: list[Question],
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Any]:
    """One request at a time, one chunk."""
    with reusing(world.folder, tmp_path_factory.mktemp("store"), world.heads, settings, **LIMITS) as server:
        store_alone(server, *documents)
        answers = [ask(server, *question, max_tokens=24) for question in questions]
        assert all(answer.reused > 0 for answer in answers)
        assert_nothing_held(server)
        return answers


@pytest.mark.parametrize(("chunk", "prefix_caching"), [(48, True), (48, False), (512, True)])
def test_any_chunk_size_and_batching_give_the_same(
    chunk: int,
    prefix_caching: bool,
    settings: Settings,
    world: World,
    documents: list[list[int]],
    questions: list[Question],
    expected: list[Any],
    tmp_path: Path,
) -> None:
    with reusing(
        world.folder,
        tmp_path,
        world.heads,
        settings,
        **LIMITS,
        max_num_batched_tokens=chunk,
        enable_prefix_caching=prefix_caching,
    ) as server:
        store_alone(server, *documents)
        got = ask_all(server, questions, max_tokens=24)
        assert [answer.reused for answer in got] == [answer.reused for answer in expected]
        assert_same([a.completion for a in got], [a.completion for a in expected])
        assert_nothing_held(server)


def test_several_samples_of_one_prompt_all_reuse(
    world: World,
    documents: list[list[int]],
    questions: list[Question],
    settings: Settings,
    expected: list[Any],
    tmp_path: Path,
) -> None:
    prompt, control = questions[1]
    with reusing(world.folder, tmp_path, world.heads, settings, **LIMITS) as server:
        store_alone(server, *documents)
        # One candidate: greedy, and still several samples.
        many = server.llm.generate(
            [{"prompt_token_ids": prompt}], params(control, 24, n=3, temperature=1.0, top_k=1), use_tqdm=False
        )[0]
        answer = list(expected[1].completion.token_ids)
        assert [list(sample.token_ids) for sample in many.outputs] == [answer] * 3
        assert connector(server).tracker.totals.segment_tokens == 3 * expected[1].reused
        assert_nothing_held(server)


def test_preempted_requests_take_their_documents_again(
    world: World,
    documents: list[list[int]],
    questions: list[Question],
    settings: Settings,
    expected: list[Any],
    tmp_path: Path,
) -> None:
    limits = {**LIMITS, "kv_cache_memory_bytes": 2_500_000, "max_num_batched_tokens": 96}
    with reusing(world.folder, tmp_path, world.heads, settings, **limits) as server:
        store_alone(server, *documents)
        roomy = [ask(server, *question, max_tokens=200) for question in questions]
        server.llm.reset_prefix_cache()
        preempted = count_preemptions(server)
        got = ask_all(server, questions, max_tokens=200)
        assert preempted
        # What was answered before the preemption is a prompt too, so a few tokens are computed differently.
        assert [answer.details["segment_tokens"] > 0 for answer in got] == [True] * len(got)
        assert_same([a.completion for a in got], [a.completion for a in roomy])
        for answer, first in zip(got, expected, strict=True):
            assert answer.completion.token_ids[:24] == first.completion.token_ids
        assert_nothing_held(server)


@pytest.mark.parametrize("steps", range(1, 9))
def test_requests_aborted_at_any_step_leave_nothing_behind(
    steps: int, questions: list[Question], expected: list[Any], abort_server: Engine
) -> None:
    engine = abort_server.llm.llm_engine
    for number, question in enumerate(questions):
        engine.add_request(
            f"abort-{steps}-{number}", {"prompt_token_ids": question.prompt}, params(question.control)
        )
    for _ in range(steps):
        engine.step()
    engine.abort_request([f"abort-{steps}-{number}" for number in range(len(questions))])
    assert_nothing_held(abort_server)
    again = ask(abort_server, *questions[3], max_tokens=24)
    assert_same([again.completion], [expected[3].completion])


@pytest.fixture(scope="module")
def abort_server(
    world: World,
    documents: list[list[int]],
    settings: Settings,
    expected: list[Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    del expected  # its engine has ended: one lives at a time
    with reusing(
        world.folder,
        tmp_path_factory.mktemp("store"),
        world.heads,
        settings,
        **LIMITS,
        max_num_batched_tokens=64,
    ) as server:
        store_alone(server, *documents)
        yield server
