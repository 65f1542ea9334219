"""Where reuse must change nothing: recomputing everything, and a document at the place where it was stored."""

from collections.abc import Iterator

import pytest

from tests.engine.harness import Engine, assert_same
from tests.engine.reuse_engine import ask, connector, marks, reusing, store_alone
from tests.engine.reuse_world import LIMITS, World

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["global", "local"])
def server(
    request: pytest.FixtureRequest, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    heads = world.heads if request.param == "local" else "all-global"
    with reusing(
        world.folder, tmp_path_factory.mktemp("store"), heads, {"min_reuse": 31}, **LIMITS
    ) as started:
        yield started


def test_a_boundary_as_long_as_the_documents_is_a_dense_answer(server: Engine, world: World) -> None:
    first, second, question = world.tokens(150), world.tokens(211), world.tokens(20)
    store_alone(server, first, second)
    prompt = [*question, *first, *second, *question]
    dense = ask(server, prompt, "off")
    server.llm.reset_prefix_cache()
    spans = marks(first, second, begin=20)
    whole = ask(server, prompt, {"spans": spans, "boundary": 1_000})
    assert whole.reused == 0
    assert_same([whole.completion], [dense.completion])
    server.llm.reset_prefix_cache()
    some = ask(server, prompt, {"spans": spans, "boundary": 16})
    assert some.reused == 150 + 211 - 32
    assert some.completion.logprobs != dense.completion.logprobs


def test_a_document_where_it_was_stored_equals_a_prefix_hit(server: Engine, world: World) -> None:
    # Whole pages, so that both skip the same tokens.
    document, question = world.tokens(192), world.tokens(20)
    store_alone(server, document)
    prompt = [*document, *question]
    reused = ask(server, prompt, {"spans": [[0, 192]]})
    assert reused.reused == 192
    # Its pages are not found by the plain hash.
    dense = ask(server, prompt, "off")
    assert dense.completion.cached_tokens == 0
    hit = ask(server, prompt, "off")
    assert hit.completion.cached_tokens == 192
    assert reused.completion.logprobs == hit.completion.logprobs
    assert_same([reused.completion], [dense.completion])


def test_a_prefix_hit_comes_before_a_stored_span(server: Engine, world: World) -> None:
    document, question = world.tokens(200), world.tokens(20)
    store_alone(server, document)
    expected = ask(server, [*question, *document, *question], "off")
    again = ask(server, [*question, *document, *question], {"spans": [[20, 220]], "boundary": 16})
    # 240 tokens are 7 whole pages of 32: 224 hit, and nothing of the document is left to load.
    assert again.details["prefix_tokens"] == 224
    assert again.reused == 0
    assert_same([again.completion], [expected.completion])


def test_a_prefix_hit_that_ends_inside_a_document_leaves_the_rest_to_the_store(
    server: Engine, world: World
) -> None:
    document, question = world.tokens(200), world.tokens(20)
    store_alone(server, document)
    dense = ask(server, [*document, *question], "off")
    server.llm.reset_prefix_cache()
    # The first 96 tokens of the document are in the prefix cache, and so are the hit's tokens of another ending.
    ask(server, [*document[:100], *question], "off")
    both = ask(server, [*document, *question], {"spans": [[0, 200]]})
    assert both.details["prefix_tokens"] == 96
    assert both.reused == 104
    assert_same([both.completion], [dense.completion])


def test_the_plain_hash_never_finds_reused_pages(server: Engine, world: World) -> None:
    first, second, question = world.tokens(150), world.tokens(211), world.tokens(50)
    store_alone(server, first, second)
    prompt = [*second, *first, *question]
    expected = ask(server, prompt, "off")
    server.llm.reset_prefix_cache()
    spans = {"spans": marks(second, first), "boundary": 0}
    reused = ask(server, prompt, spans, max_tokens=100)
    assert reused.reused == 361
    after = ask(server, prompt, "off")
    assert after.completion.cached_tokens == 0
    assert_same([after.completion], [expected.completion])
    # And reuse behind an exact prefix still has the store's answer.
    assert ask(server, prompt, spans).details["prefix_tokens"] > 0
    server.llm.reset_prefix_cache()
    assert_same([ask(server, prompt, spans, max_tokens=100).completion], [reused.completion])


def test_stored_documents_are_found_without_marks(server: Engine, world: World) -> None:
    document, intro = world.tokens(150), world.tokens(33)
    store_alone(server, document)
    prompt = [*intro, *document, *intro]
    assert ask(server, prompt, {}).reused == 150 - 16
    server.llm.reset_prefix_cache()
    assert ask(server, prompt, None).reused == 150 - 16
    server.llm.reset_prefix_cache()
    assert ask(server, prompt, "off").reused == 0


def test_prompt_logprobs_are_of_a_dense_forward_pass(server: Engine, world: World) -> None:
    document, question = world.tokens(150), world.tokens(33)
    store_alone(server, document)
    got = server.complete([[*question, *document]], prompt_logprobs=True)[0]
    assert got.cached_tokens == 0
    assert len(got.prompt_logprobs) == 182


@pytest.mark.parametrize(
    "wish", [7, "yes", "{", {"spans": [[0, 9999]]}, {"spans": [[5, 5]]}, {"boundary": -1}, {"window": 3}]
)
def test_a_wish_that_makes_no_sense_is_answered_without_reuse_and_says_why(
    wish: object, server: Engine, world: World
) -> None:
    prompt = world.tokens(100)
    expected = ask(server, prompt, "off")
    got = ask(server, prompt, wish)
    assert got.reused == 0
    assert got.details["problem"]
    assert_same([got.completion], [expected.completion])


def test_after_a_reset_of_the_connector_nothing_is_reused_any_more(server: Engine, world: World) -> None:
    document = world.tokens(150)
    store_alone(server, document)
    prompt = [*document, *world.tokens(9)]
    assert ask(server, prompt, {}).reused == 150
    tracker = connector(server).tracker
    try:
        assert server.scheduler.reset_prefix_cache(reset_connector=True)
        assert not tracker.is_on
        assert ask(server, prompt, {}).reused == 0
    finally:
        tracker.is_on = True
