"""The engine with reuse and row skipping against an independent model of both, in fp32."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Cut
from tests.engine.harness import FP32_BOUND, largest_difference
from tests.engine.head_files import Limits, random_heads, write
from tests.engine.reuse_engine import ask, marks, reusing, store_alone
from tests.engine.rows_reuse_oracle import RowReuseModel, StoredRun
from tests.engine.small_models import SHAPES, random_cut, save, small_heads

pytestmark = pytest.mark.slow

LATE = {"ffn_from": 1, "attention_from": 2, "sink": 3, "recent": 40}
# Half of the tokens of layer 1 are below this threshold.
SPARSE = {
    "sparse_ffn": {"rule": "relative_norm", "thresholds": {"1": 0.6}},
    "ffn_from": 2,
    "sink": 0,
    "recent": 25,
}
DEEP = {"ffn_from": 20, "attention_from": 24, "sink": 4, "recent": 60}


@pytest.mark.parametrize(
    ("rows", "seed", "chunk", "page", "boundary"),
    [(LATE, None, 64, 16, 0), (LATE, 0, 512, 32, 16), (LATE, 1, 48, 32, 16), (SPARSE, 2, 64, 16, 16)],
)
def test_logprobs_of_a_random_model_equal_those_of_a_model_that_skips_and_reuses_the_same(
    rows: dict[str, Any], seed: int | None, chunk: int, page: int, boundary: int, tmp_path: Path
) -> None:
    folder = save(SHAPES["gqa_4"], tmp_path / "model")
    heads = small_heads(seed)
    limits: dict[str, Any] = {"max_num_batched_tokens": chunk, "block_size": page, "max_model_len": 1024}
    check(folder, random_cut(), heads, rows, boundary, tmp_path, skip_tokenizer_init=True, **limits)


def test_logprobs_of_a_real_model_equal_those_of_a_model_that_skips_and_reuses_the_same(
    model_path: Path, cut: Cut, tmp_path: Path
) -> None:
    check(model_path, cut, random_heads(30, 3, seed=4), DEEP, 16, tmp_path)


def check(
    folder: Path,
    cut: Cut,
    heads: list[list[Limits]],
    rows: dict[str, Any],
    boundary: int,
    tmp_path: Path,
    **arguments: Any,
) -> None:
    first, second, third = cut(0, 200), cut(1_000, 331), cut(2_000, 170)
    intro, question = cut(3_000, 51), cut(4_000, 30)
    # Stored alone, or out of a longer prompt, where the last tokens of the document skip as well.
    computed_in = [first, second, [*third, *intro, *question]]
    prompts = {
        # Documents one behind the other from the start, and between tokens that are nobody's.
        "at the start": ([*first, *second, *third, *question], [0, 1, 2], 0),
        "behind others": ([*intro, *third, *first, *question], [2, 0], len(intro)),
    }
    documents = [first, second, third]
    oracle = RowReuseModel(folder, heads, rows)
    settings = {"boundary": boundary, "rows": rows}
    with reusing(folder, tmp_path / "store", write(tmp_path, heads), settings, **arguments) as server:
        store_alone(server, first, second)
        ask(server, computed_in[2], {"spans": [[0, len(third)]]}, max_tokens=1)
        assert server.llm.reset_prefix_cache()
        for name, (prompt, order, start) in prompts.items():
            free = server.free_blocks
            spans = marks(*(documents[number] for number in order), begin=start)
            answer = ask(server, prompt, {"spans": spans}, max_tokens=12)
            runs = [
                StoredRun(begin, begin + (boundary if begin else 0), end, computed_in[number])
                for number, (begin, end) in zip(order, spans, strict=True)
            ]
            assert answer.reused == sum(run.end - run.clean for run in runs), name
            expected = oracle.answer(prompt, answer.completion.token_ids, runs)
            assert largest_difference(answer.completion.logprobs, expected) < FP32_BOUND, name
            # Both matter: the same model says something else without reuse, and without skipping.
            for other in (
                oracle.answer(prompt, answer.completion.token_ids, []),
                oracle.answer(prompt, answer.completion.token_ids, runs, rows={}),
            ):
                assert largest_difference(expected, other) > 10 * FP32_BOUND, name
            assert server.free_blocks == free
            assert server.llm.reset_prefix_cache()
