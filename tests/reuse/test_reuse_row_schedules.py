"""Real vLLM schedulers over simulated pages, with row skipping: a prefix hit is KV of tokens that skipped alike."""

import random
from pathlib import Path

import pytest

from tests.engine.small_models import SHAPES, save
from tests.reuse.schedule_simulation import Simulation
from tests.reuse.test_reuse_span_scheduler import DOCUMENTS, HEADS, find, prompt_of
from vllm_redknot.rows.schedule import RowSchedule

ROWS = RowSchedule.parse({"ffn_from": 1, "sink": 3, "recent": 50})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(SHAPES["gqa_4"], tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("ahead", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_every_query_reads_keys_that_skipped_as_in_its_own_prompt(
    seed: int, ahead: int, folder: Path
) -> None:
    draw = random.Random(seed)
    page = draw.choice([16, 32])
    world = Simulation(
        folder,
        HEADS,
        page,
        draw.choice([130, 400]) * 16 // page,
        draw.choice([24, 64, 512]),
        ahead,
        find(draw.choice([0, 16])),
        rows=ROWS,
    )
    prompts = [prompt_of(draw) for _ in range(4)]
    # Longer ones that begin alike, as follow-up turns do.
    prompts += [[*prompt, *range(draw.choice([10, 60, 120]))] for prompt in prompts]
    requests, off = [], set()
    for number in range(24):
        rows_off = draw.random() < 0.3
        request = world.add(f"r{number}", draw.choice(prompts), draw.choice([1, 5, 60]), rows_off)
        requests.append(request)
        if rows_off:
            off.add(request.request_id)
        world.run(draw.choice([0, 1, 3, 8]))
        if draw.random() < 0.2:
            world.abort(draw.choice(requests).request_id)
    world.run()
    assert all(request.is_finished() for request in requests)
    assert world.loads
    assert not off & {load.request_id for load in world.loads}
    world.assert_empty()


@pytest.mark.parametrize("ahead", [1, 2])
def test_pages_before_a_reused_document_serve_longer_prompts_and_none_behind_it(
    ahead: int, folder: Path
) -> None:
    world = Simulation(folder, HEADS, 16, 300, 64, ahead, find(16), rows=ROWS)
    intro = list(range(100))
    prompt = [*intro, *DOCUMENTS["c"], *range(60)]
    hits = []
    for number, asked in enumerate((prompt, prompt, [*prompt, *range(40)])):
        world.add(f"r{number}", asked)
        world.run()
        hits.append(world.scheduler.connector.tracker.totals.prefix_tokens)
    # 116 tokens are computed before the document's first reused one: 7 whole pages.
    assert hits == [0, 7 * 16, 2 * 7 * 16]
    world.assert_empty()


def test_the_simulation_notices_hashes_that_do_not_tell_what_skipped(folder: Path) -> None:
    world = Simulation(folder, HEADS, 16, 300, 64, 1, find(16), rows=ROWS, marks_blocks=False)
    world.add("skips", list(range(200)))
    world.run()
    world.add("does not", list(range(200)), rows_off=True)
    with pytest.raises(AssertionError, match="reads key 3 of group 0"):
        world.run()
