"""The engine's blend against an independent model of the same choice, on real and random weights in fp32."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Cut
from tests.engine.harness import largest_difference
from tests.engine.head_files import Limits, random_heads, write
from tests.engine.reuse_engine import ask, marks, reusing, store_alone
from tests.engine.reuse_oracle import Blended, ReuseModel
from tests.engine.small_models import SHAPES, random_cut, save, small_heads

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("shape", "seed", "chunk", "page", "share"),
    [
        ("gqa_4", None, 512, 16, 0.15),
        ("gqa_4", 0, 512, 32, 0.15),
        ("gqa_4", 2, 64, 16, 0.3),
        ("qwen3_head_128_with_qk_norm", 1, 100, 32, 0.05),
    ],
)
def test_logprobs_of_a_random_model_equal_those_of_the_same_choice(
    shape: str, seed: int | None, chunk: int, page: int, share: float, tmp_path: Path
) -> None:
    folder = save(SHAPES[shape], tmp_path / "model")
    heads = small_heads(seed)
    more = {"skip_tokenizer_init": True, "max_model_len": 1024}
    check(folder, random_cut(), heads, share, tmp_path, chunk, block_size=page, **more)


def test_logprobs_of_a_real_model_equal_those_of_the_same_choice(
    model_path: Path, cut: Cut, tmp_path: Path
) -> None:
    check(model_path, cut, random_heads(30, 3, seed=4), 0.15, tmp_path)


def check(
    folder: Path,
    cut: Cut,
    heads: list[list[Limits]],
    share: float,
    tmp_path: Path,
    chunk: int = 512,
    **arguments: Any,
) -> None:
    first, second, third = cut(0, 200), cut(1_000, 331), cut(2_000, 170)
    intro, question = cut(3_000, 21), cut(4_000, 30)
    prompts = {
        "at the start": ([*first, *second, *third, *question], marks(first, second, third)),
        "behind others": ([*intro, *third, *first, *question], marks(third, first, begin=len(intro))),
    }
    oracle = ReuseModel(folder, heads)
    settings, arguments = {"policy": "blend"}, {"max_num_batched_tokens": chunk, **arguments}
    with reusing(folder, tmp_path / "store", write(tmp_path, heads), settings, **arguments) as server:
        store_alone(server, first, second, third)
        for name, (prompt, spans) in prompts.items():
            free = server.free_blocks
            answer = ask(server, prompt, {"spans": spans, "policy": "blend", "share": share}, max_tokens=12)
            # What begins the prompt lacks nothing. A document that is cut begins a chunk.
            whole = [(begin, begin, end) for begin, end in spans if begin == 0]
            parts = [
                (document, begin, min(begin + chunk, document[1]))
                for document in ((begin, end) for begin, end in spans if begin)
                for begin in range(*document, chunk)
            ]
            blended = [Blended(document, begin, end, share) for document, begin, end in parts]
            reused = sum(end - begin - round(share * (end - begin)) for _, begin, end in parts)
            assert answer.reused == reused + sum(end - begin for begin, _, end in whole), name
            assert answer.details["segments"] == len(spans), name
            expected = oracle.logprobs(prompt, answer.completion.token_ids, whole, blended)
            assert largest_difference(answer.completion.logprobs, expected) < 1e-3, name
            # It matters which are chosen, and that some are.
            for part in blended:
                part.share = 0.0
            none = oracle.logprobs(prompt, answer.completion.token_ids, whole, blended)
            assert largest_difference(expected, none) > 0.01, name
            dense = oracle.logprobs(prompt, answer.completion.token_ids, [])
            assert largest_difference(expected, dense) > 0.01, name
            assert server.free_blocks == free
