"""Prefix caching with row skipping and reuse on: a hit is what would have been computed, and never what was reused."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.engine.harness import Completion, Engine, assert_same, engine
from tests.engine.reuse_engine import Answer, ask, assert_nothing_held, marks, params, reusing, store_alone
from tests.engine.reuse_world import LIMITS, World

pytestmark = pytest.mark.slow

ROWS = {"ffn_from": 1, "attention_from": 2, "sink": 3, "recent": 40}
PAGE = 32
OFF = {"redknot_rows": "off"}


class Texts(NamedTuple):
    first: list[int]
    second: list[int]
    intro: list[int]
    question: list[int]
    more: list[int]


@pytest.fixture(scope="module")
def texts(world: World) -> Texts:
    return Texts(*(world.tokens(length) for length in (150, 211, 100, 50, 100)))


@pytest.fixture(scope="module", params=["global", "local"])
def heads(request: pytest.FixtureRequest, world: World) -> str:
    return world.heads if request.param == "local" else "all-global"


@pytest.fixture(scope="module")
def prompts(texts: Texts) -> dict[str, list[int]]:
    """A prompt, a longer one that begins like it, and one that begins with documents."""
    prompt = [*texts.intro, *texts.first, *texts.question]
    return {
        "prompt": prompt,
        "longer": [*prompt, *texts.more],
        "documents": [*texts.second, *texts.first, *texts.question],
    }


@pytest.fixture(scope="module")
def dense(world: World, heads: str, prompts: dict[str, list[int]]) -> dict[tuple[str, bool], Completion]:
    """Answers without a prefix cache and without reuse, by prompt and whether rows are skipped."""
    settings = {"heads": heads, "rows": ROWS}
    with engine(world.folder, settings, dtype="float32", enable_prefix_caching=False, **LIMITS) as server:
        return {
            (name, skips): server.complete([prompt], extra_args={} if skips else OFF)[0]
            for name, prompt in prompts.items()
            for skips in (True, False)
        }


@pytest.fixture(scope="module")
def server(
    world: World, heads: str, dense: Any, texts: Texts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    del dense  # its engine has ended: one lives at a time
    settings = {"min_reuse": 31, "rows": ROWS}
    with reusing(world.folder, tmp_path_factory.mktemp("store"), heads, settings, **LIMITS) as started:
        store_alone(started, texts.first, texts.second)
        yield started


def test_after_a_prompt_with_reuse_only_what_was_before_the_reused_tokens_is_found(
    server: Engine, prompts: dict[str, list[int]], dense: dict[tuple[str, bool], Completion]
) -> None:
    server.llm.reset_prefix_cache()
    reused = ask(server, prompts["prompt"], {"spans": [[100, 250]]}, max_tokens=60)
    assert reused.reused == 150 - 16
    assert largest(reused, dense["prompt", True]) > 0.01
    # 100 tokens and a boundary of 16 were computed: 3 whole pages.
    plain = ask(server, prompts["prompt"], "off")
    assert 0 <= plain.completion.cached_tokens <= 3 * PAGE
    assert_same([plain.completion], [dense["prompt", True]])
    # A longer prompt shares the pages of tokens that skip in both, which now have been computed.
    longer = ask(server, prompts["longer"], "off")
    assert longer.completion.cached_tokens == (300 - 40) // PAGE * PAGE
    assert_same([longer.completion], [dense["longer", True]])


def test_a_request_with_rows_off_finds_nothing_of_those_that_skip_and_leaves_nothing_for_them(
    server: Engine, prompts: dict[str, list[int]], dense: dict[tuple[str, bool], Completion]
) -> None:
    server.llm.reset_prefix_cache()
    ask(server, prompts["prompt"], {"spans": [[100, 250]]})
    ask(server, prompts["prompt"], "off")
    whole = ask(server, prompts["prompt"], {"spans": [[100, 250]]}, **OFF)
    assert (whole.completion.cached_tokens, whole.reused) == (0, 0)
    assert_same([whole.completion], [dense["prompt", False]])
    again = ask(server, prompts["longer"], "off", **OFF)
    assert again.completion.cached_tokens == 300 // PAGE * PAGE
    assert_same([again.completion], [dense["longer", False]])
    skips = ask(server, prompts["documents"], "off")
    assert skips.completion.cached_tokens == 0
    assert_same([skips.completion], [dense["documents", True]])


def test_a_prefix_hit_comes_before_the_store_and_reuse_goes_on_behind_it(
    server: Engine, texts: Texts, prompts: dict[str, list[int]]
) -> None:
    server.llm.reset_prefix_cache()
    spans = {"spans": marks(texts.first, begin=100)}
    expected = ask(server, prompts["longer"], spans)
    assert expected.reused == 134
    again = ask(server, prompts["longer"], spans)
    assert 0 <= again.details["prefix_tokens"] <= 3 * PAGE
    assert again.reused == 134
    assert_same([again.completion], [expected.completion])


def test_no_page_with_reused_tokens_or_behind_them_has_a_hash(
    server: Engine, texts: Texts, prompts: dict[str, list[int]]
) -> None:
    for name, begin, spans in (
        ("documents", 0, marks(texts.second, texts.first)),
        ("prompt", 116, marks(texts.first, begin=100)),
    ):
        server.llm.reset_prefix_cache()
        pages = pages_while_decoding(server, prompts[name], spans)
        hashed = [index for blocks in pages for index, is_hashed in blocks if is_hashed]
        assert all(index < begin // PAGE for index in hashed), name
        # Global heads' pages before it are.
        assert bool(hashed) == (begin >= PAGE), name
    assert_nothing_held(server)


def pages_while_decoding(server: Engine, prompt: list[int], spans: Any) -> list[list[tuple[int, bool]]]:
    """Per KV-cache group, each page of a request that is being answered: its index, and whether a hash finds it."""
    llm = server.llm.llm_engine
    llm.add_request("pages", {"prompt_token_ids": prompt}, params({"spans": spans}, max_tokens=120))
    found: list[list[tuple[int, bool]]] = []
    while llm.has_unfinished_requests():
        llm.step()
        for request_id, request in server.scheduler.requests.items():
            if request.num_output_tokens == 100:
                managers = server.scheduler.kv_cache_manager.coordinator.single_type_managers
                found = [
                    [
                        (index, block.block_hash is not None)
                        for index, block in enumerate(manager.req_to_blocks[request_id])
                        if not block.is_null
                    ]
                    for manager in managers
                ]
    assert found
    return found


def largest(answer: Answer, other: Completion) -> float:
    """Largest difference of logprobs while the tokens are the same."""
    pairs = zip(answer.completion.logprobs, other.logprobs, strict=False)
    return max(abs(left - right) for left, right in pairs)
