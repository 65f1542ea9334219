"""The engine with reuse against an independent model of the same policy, on real weights in fp32."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Cut
from tests.engine.harness import largest_difference
from tests.engine.head_files import Limits, random_heads, write
from tests.engine.reuse_engine import ask, marks, reusing, store_alone
from tests.engine.reuse_oracle import ReuseModel
from tests.engine.small_models import SHAPES, random_cut, save, small_heads

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("seed", "chunk", "page", "boundary"),
    [(None, 64, 16, 0), (0, 512, 32, 16), (1, 64, 32, 0), (2, 48, 16, 16)],
)
def test_logprobs_of_a_random_model_equal_those_of_explicit_masks_and_positions(
    seed: int | None, chunk: int, page: int, boundary: int, tmp_path: Path
) -> None:
    shape = SHAPES["gqa_4"]
    folder = save(shape, tmp_path / "model")
    heads = small_heads(seed)
    limits = {"max_num_batched_tokens": chunk, "block_size": page, "max_model_len": 1024}
    check(folder, random_cut(), heads, boundary, tmp_path, skip_tokenizer_init=True, **limits)


def test_logprobs_of_a_real_model_equal_those_of_explicit_masks_and_positions(
    model_path: Path, cut: Cut, tmp_path: Path
) -> None:
    check(model_path, cut, random_heads(30, 3, seed=4), 16, tmp_path, max_num_batched_tokens=512)


def check(
    folder: Path,
    cut: Cut,
    heads: list[list[Limits]],
    boundary: int,
    tmp_path: Path,
    **arguments: Any,
) -> None:
    first, second, third = cut(0, 200), cut(1_000, 331), cut(2_000, 170)
    intro, question = cut(3_000, 21), cut(4_000, 30)
    prompts = {
        # Documents one behind the other from the start, and between tokens that are nobody's.
        "at the start": ([*first, *second, *third, *question], marks(first, second, third)),
        "behind others": ([*intro, *third, *first, *question], marks(third, first, begin=len(intro))),
    }
    oracle = ReuseModel(folder, heads)
    settings = {"boundary": boundary}
    with reusing(folder, tmp_path / "store", write(tmp_path, heads), settings, **arguments) as server:
        store_alone(server, first, second, third)
        for name, (prompt, spans) in prompts.items():
            free = server.free_blocks
            answer = ask(server, prompt, {"spans": spans}, max_tokens=12)
            documents = [(begin, begin + (boundary if begin else 0), end) for begin, end in spans]
            assert answer.reused == sum(end - clean for _, clean, end in documents), name
            expected = oracle.logprobs(prompt, answer.completion.token_ids, documents)
            assert largest_difference(answer.completion.logprobs, expected) < 1e-3, name
            # It matters: the same model without reuse says something else.
            dense = oracle.logprobs(prompt, answer.completion.token_ids, [])
            assert largest_difference(expected, dense) > 0.01, name
            assert server.free_blocks == free
