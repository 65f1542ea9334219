"""What tokens skip does not depend on chunks, batches, prefix hits or preemption. In fp32, where no noise hides it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import Cut
from tests.engine.harness import Completion, Engine, assert_same, count_preemptions, engine
from tests.engine.head_files import random_heads, write
from tests.engine.rows_oracle import one_value_probe
from tests.engine.small_models import LAYERS, SHAPES, save

pytestmark = pytest.mark.slow

PREDICTOR = {"rule": "predictor", "probes": {"17": one_value_probe(576, 7), "19": one_value_probe(576)}}
ROWS = {"ffn_from": 20, "attention_from": 24, "sink": 4, "recent": 128, "sparse_ffn": PREDICTOR}
OFF = {"extra_args": {"redknot_rows": "off"}}


@pytest.fixture(scope="module")
def prompts(cut: Cut) -> list[list[int]]:
    """Shorter than what is always computed, a little longer, and several chunks long."""
    return [cut(2000 * i, length) for i, length in enumerate((33, 133, 300, 641, 1024))]


@pytest.fixture(scope="module")
def expected(model_path: Path, prompts: list[list[int]]) -> list[Completion]:
    """One prompt after the other, in chunks of 512, without a prefix cache."""
    with engine(model_path, {"rows": ROWS}, dtype="float32", enable_prefix_caching=False) as server:
        return [server.complete([prompt])[0] for prompt in prompts]


@pytest.fixture(scope="module")
def without_rows(model_path: Path, prompts: list[list[int]]) -> list[Completion]:
    """The same server and no row skipping."""
    with engine(model_path, {}, dtype="float32", enable_prefix_caching=False) as server:
        return [server.complete([prompt])[0] for prompt in prompts]


def hit_tokens(server: Engine, prompt: list[int]) -> tuple[int, Completion]:
    """Cached tokens of a prompt that is asked now, and its answer."""
    [answer] = server.complete([prompt])
    return answer.cached_tokens, answer


@pytest.mark.parametrize("chunk", [64, 2048])
def test_any_chunk_size_in_mixed_batches_gives_the_same(
    chunk: int, model_path: Path, prompts: list[list[int]], expected: list[Completion]
) -> None:
    with engine(model_path, {"rows": ROWS}, dtype="float32", max_num_batched_tokens=chunk) as server:
        assert_same(server.complete(prompts), expected)
        # All at once, while others decode, in another order.
        again = [*prompts, *reversed(prompts)]
        assert_same(server.complete(again, max_tokens=8), [*expected, *reversed(expected)])


def test_a_request_or_a_server_with_rows_off_equals_a_server_without_bit_for_bit(
    model_path: Path, prompts: list[list[int]], expected: list[Completion], without_rows: list[Completion]
) -> None:
    with engine(model_path, {"rows": ROWS}, dtype="float32") as server:
        server.complete(prompts)
        # The prefix cache is full of KV of tokens that skipped: none of it may be served.
        assert [server.complete([prompt], **OFF)[0] for prompt in prompts[1:]] == without_rows[1:]
        # A short prompt skips nothing, so its KV serves both.
        assert server.complete(prompts[:1], **OFF)[0].cached_tokens == 32
        assert_same([server.complete([prompt])[0] for prompt in prompts], expected)
        whole = [server.complete([prompt], prompt_logprobs=True)[0] for prompt in prompts]
    assert_same(whole, without_rows)
    # Short prompts are untouched; long ones are not.
    assert expected[0] == without_rows[0]
    assert all(a.logprobs != b.logprobs for a, b in zip(expected[2:], without_rows[2:], strict=True))
    with engine(model_path, {"rows": "off"}, dtype="float32", enable_prefix_caching=False) as off:
        assert [off.complete([prompt])[0] for prompt in prompts] == without_rows


def test_prefix_hits_serve_only_what_would_have_been_computed(
    model_path: Path, cut: Cut, prompts: list[list[int]], expected: list[Completion]
) -> None:
    text = cut(20_000, 900)
    with engine(model_path, {"rows": ROWS}, dtype="float32", enable_prefix_caching=False) as server:
        fresh = [server.complete([text[:length]])[0] for length in (700, 900)]
    with engine(model_path, {"rows": ROWS}, dtype="float32") as server:
        first_hit, first = hit_tokens(server, text[:700])
        longer_hit, longer = hit_tokens(server, text)
        same_hit, same = hit_tokens(server, text[:700])
        assert_same([first, longer, same], [fresh[0], fresh[1], fresh[0]])
        # 700 - 128 = 572 tokens skip, 17 whole pages of 32 among them; the same prompt hits nearly all of its pages.
        assert (first_hit, longer_hit) == (0, 544)
        assert same_hit >= 640
        for prompt, answer in zip(prompts, expected, strict=True):
            server.complete([prompt])
            assert_same(server.complete([prompt]), [answer])


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_preempted_requests_resume_with_the_same_tokens(prefix_caching: bool, tmp_path: Path) -> None:
    shape = SHAPES["gqa_4"]
    folder = save(shape, tmp_path)
    rows = {"ffn_from": 1, "attention_from": 2, "sink": 2, "recent": 8}
    settings = {"heads": write(tmp_path, random_heads(LAYERS, shape.kv_heads, seed=5)), "rows": rows}
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 512, (40 + i,), generator=generator).tolist() for i in range(8)]
    limits: dict[str, Any] = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 320,
        "max_num_batched_tokens": 96,
        "enable_prefix_caching": prefix_caching,
    }
    with engine(folder, settings, **limits, kv_cache_memory_bytes=2**25) as roomy:
        preempted = count_preemptions(roomy)
        expected = roomy.complete(prompts, max_tokens=250)
        assert not preempted
    with engine(folder, settings, **limits, kv_cache_memory_bytes=1_250_000) as cramped:
        preempted = count_preemptions(cramped)
        got = cramped.complete(prompts, max_tokens=250)
        assert preempted
    assert_same(got, expected)
