"""Prompts that begin with the middle of a stored document, against an independent model."""

from pathlib import Path

import pytest

from tests.engine.harness import FP32_BOUND, largest_difference
from tests.engine.reuse_engine import ask, reusing, store_alone
from tests.engine.reuse_world import LIMITS, World
from tests.engine.rows_reuse_oracle import RowReuseModel, StoredRun
from tests.engine.small_models import LAYERS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("boundary", [0, 16])
def test_a_part_that_begins_a_prompt_has_its_boundary_recomputed(
    boundary: int, world: World, tmp_path: Path
) -> None:
    document, question = world.tokens(300), world.tokens(30)
    prompt = [*document[100:260], *question]
    oracle = RowReuseModel(world.folder, [[None] * 2] * LAYERS, {})
    with reusing(world.folder, tmp_path, settings={"boundary": boundary}, **LIMITS) as server:
        store_alone(server, document)
        # Unmarked: prompts are searched for parts of what is stored.
        answer = ask(server, prompt, {})
        assert answer.reused == 160 - boundary
        run = StoredRun(0, boundary, 160, document, offset=100)
        expected = oracle.answer(prompt, answer.completion.token_ids, [run])
        assert largest_difference(answer.completion.logprobs, expected) < FP32_BOUND
        dense = oracle.answer(prompt, answer.completion.token_ids, [])
        assert largest_difference(expected, dense) > 10 * FP32_BOUND
