"""Documents stored out of served requests, wherever they stood."""

from pathlib import Path

import pytest

from tests.engine.harness import assert_same
from tests.engine.reuse_engine import ask, marks, reusing, worker
from tests.engine.reuse_world import LIMITS, World

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("chunk", [48, 512])
def test_documents_stored_where_they_stood_give_the_dense_answer_there(chunk: int, tmp_path: Path) -> None:
    world = World(tmp_path)
    settings = {"capture": "marked", "min_reuse": 31}
    first, second, question = world.tokens(150), world.tokens(333), world.tokens(20)
    prompt, spans = [*question, *first, *question, *second, *question], marks(first, begin=20)
    spans += marks(second, begin=190)
    with reusing(
        world.folder, tmp_path / "store", world.heads, settings, **LIMITS, max_num_batched_tokens=chunk
    ) as server:
        dense = ask(server, prompt, {"spans": spans})
        assert dense.reused == 0
        assert worker().store.counters().stored == 2
        server.llm.reset_prefix_cache()
        # Nothing before them is different, so nothing needs repair.
        again = ask(server, prompt, {"spans": spans, "boundary": 0})
        assert again.reused == 483
        assert_same([again.completion], [dense.completion])
        # Elsewhere it is an approximation; what is stored is not stored again.
        server.llm.reset_prefix_cache()
        assert ask(server, [*second, *first, *question], {"spans": marks(second, first)}).reused == 467
        assert worker().store.counters().stored == 2


def test_a_document_that_overlaps_a_stored_one_is_stored_whole_where_a_request_reuses_nothing(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    first = world.tokens(150)
    second = [*first, *world.tokens(60)]
    with reusing(world.folder, tmp_path / "store", world.heads, {"min_reuse": 31}, **LIMITS) as server:
        ask(server, first, {"spans": [[0, 150]]}, max_tokens=1)
        server.llm.reset_prefix_cache()
        ask(server, second, {"spans": [[0, 210]]}, max_tokens=1)
        assert worker().store.counters().stored == 1
        server.llm.reset_prefix_cache()
        alone = ask(server, second, {"spans": [[0, 210]], "reuse": False}, max_tokens=1)
        assert (alone.reused, worker().store.counters().stored) == (0, 2)
        server.llm.reset_prefix_cache()
        again = ask(server, second, {"spans": [[0, 210]], "reuse": False}, max_tokens=1)
        assert (again.reused, worker().store.counters().stored) == (0, 2)
        server.llm.reset_prefix_cache()
        # A prompt's last token is always computed.
        assert ask(server, second, {"spans": [[0, 210]]}).reused == 209


def test_a_server_that_stores_only_what_begins_a_prompt_stores_nothing_else(tmp_path: Path) -> None:
    world = World(tmp_path)
    document, question = world.tokens(150), world.tokens(20)
    with reusing(world.folder, tmp_path / "store", world.heads, {"min_reuse": 31}, **LIMITS) as server:
        ask(server, [*question, *document, *question], {"spans": [[20, 170]]})
        assert worker().store.counters().stored == 0
        # Behind a prefix-cache hit the pages of local heads are gone: nothing half is stored.
        ask(server, [*document, *question], "off")
        ask(server, [*document, *question], {"spans": [[0, 150]]})
        assert worker().store.counters().stored == 0
        server.llm.reset_prefix_cache()
        ask(server, [*document, *question], {"spans": [[0, 150]]})
        assert worker().store.counters().stored == 1
