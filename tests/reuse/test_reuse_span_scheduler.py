"""Real vLLM schedulers, synchronous and asynchronous, over simulated pages."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.engine.small_models import SHAPES, save
from tests.reuse.schedule_simulation import Limits, Simulation
from vllm_redknot.reuse.plan import CleanSpan

HEADS: list[Limits] = [None, (1, 0), (20, 4), (50, 40)]
DOCUMENTS = {
    name: [1000 * number + i for i in range(length)]
    for number, (name, length) in enumerate({"a": 64, "b": 97, "c": 200}.items(), start=1)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(SHAPES["gqa_4"], tmp_path_factory.mktemp("model"))


def find(boundary: int) -> Any:
    """Documents wherever they stand, as the worker plans them."""

    def spans(tokens: list[int]) -> tuple[CleanSpan, ...]:
        found = []
        for name, document in DOCUMENTS.items():
            for begin in range(len(tokens) - len(document) + 1):
                if tokens[begin : begin + len(document)] == document:
                    skipped = boundary if begin else 0
                    end = min(begin + len(document), len(tokens) - 1)
                    found.append(CleanSpan(begin + skipped, end, name, skipped))
        return tuple(sorted(found))

    return spans


def prompt_of(draw: random.Random) -> list[int]:
    """Documents in any order, own tokens before, between and behind some of them."""
    prompt: list[int] = []
    for name in draw.sample(sorted(DOCUMENTS), draw.randint(0, 3)):
        prompt += [draw.randrange(500) for _ in range(draw.choice([0, 0, 1, 30]))]
        prompt += DOCUMENTS[name]
    return prompt + [draw.randrange(500) for _ in range(draw.choice([1, 17, 40]))]


@pytest.mark.parametrize("ahead", [1, 2])
@pytest.mark.parametrize("boundary", [0, 16])
def test_documents_are_skipped_and_every_query_reads_the_right_keys(
    boundary: int, ahead: int, folder: Path
) -> None:
    world = Simulation(folder, HEADS, 16, 200, 64, ahead, find(boundary))
    prompt = [*DOCUMENTS["c"], *DOCUMENTS["a"], 1, 2, 3, *DOCUMENTS["b"], *range(20)]
    request = world.add("one", prompt)
    world.run()
    assert request.num_output_tokens == 4
    assert [load.span.content for load in world.loads] == ["c", "a", "b"]
    assert sum(load.span.end - load.span.begin for load in world.loads) == 361 - 2 * boundary
    assert world.scheduler.connector.tracker.totals.segment_tokens == 361 - 2 * boundary
    world.assert_empty()


@pytest.mark.parametrize("ahead", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_random_requests_that_come_go_and_are_preempted_lose_nothing(
    seed: int, ahead: int, folder: Path
) -> None:
    draw = random.Random(seed)
    page = draw.choice([16, 32])
    blocks = draw.choice([100, 130, 400])
    world = Simulation(
        folder,
        HEADS,
        page,
        blocks * 16 // page,
        draw.choice([24, 64, 512]),
        ahead,
        find(draw.choice([0, 16])),
        prefix_caching=draw.random() < 0.7,
    )
    prompts = [prompt_of(draw) for _ in range(6)]
    requests = []
    for number in range(20):
        requests.append(world.add(f"r{number}", draw.choice(prompts), draw.choice([1, 5, 60])))
        world.run(draw.choice([0, 1, 3, 8]))
        if draw.random() < 0.2:
            world.abort(draw.choice(requests).request_id)
    world.run()
    assert all(request.is_finished() for request in requests)
    assert world.loads
    world.assert_empty()


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_pool_that_is_too_small_preempts_and_goes_on(ahead: int, folder: Path) -> None:
    world = Simulation(folder, HEADS, 16, 75, 64, ahead, find(16))
    preempted = []
    original = world.scheduler._preempt_request

    def note(request: Any, *arguments: Any, **keywords: Any) -> None:
        preempted.append(request.request_id)
        original(request, *arguments, **keywords)

    world.scheduler._preempt_request = note
    prompt = [*DOCUMENTS["c"], *DOCUMENTS["a"], *range(20)]
    requests = [world.add(f"r{number}", [number, *prompt], 60) for number in range(4)]
    world.run()
    assert preempted
    assert all(request.num_output_tokens == 60 for request in requests)
    world.assert_empty()


@pytest.mark.parametrize("ahead", [1, 2])
def test_requests_whose_loads_break_start_over_and_compute(ahead: int, folder: Path) -> None:
    world = Simulation(folder, HEADS, 16, 300, 64, ahead, find(0))
    world.break_loads = True
    requests = [world.add(f"r{n}", [n, *DOCUMENTS["c"], n, *DOCUMENTS["a"], *range(9)]) for n in range(3)]
    world.run()
    assert not world.loads
    assert all(request.num_output_tokens == 4 for request in requests)
    assert world.scheduler.connector.tracker.totals.faults == 3
    world.assert_empty()
