"""Documents marked by their text are reused and stored as those marked by their tokens are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Engine, assert_same
from tests.engine.reuse_engine import Answer, ask, reusing, worker
from vllm_redknot.evals.texts import essays

pytestmark = pytest.mark.slow

FIRST, SECOND = essays()[1_000:2_200].strip(), essays()[9_000:10_500].strip()
# Their first and last characters merge with what they are joined to.
PROMPT = f"Read these:\n{FIRST}... and this:{SECOND}\n\nWhat do they say?"


@pytest.fixture(scope="module")
def server(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    store = tmp_path_factory.mktemp("store")
    with reusing(model_path, store, settings={"capture": "marked"}, max_model_len=1024) as started:
        yield started


@pytest.fixture(scope="module")
def tokenizer(server: Engine) -> Any:
    return server.llm.get_tokenizer()


def span(tokenizer: Any, part: str) -> list[int]:
    """The prompt's tokens that hold no character outside the part."""
    begin, offsets = PROMPT.index(part), tokenizer(PROMPT, return_offsets_mapping=True)["offset_mapping"]
    inside = [index for index, (a, b) in enumerate(offsets) if begin <= a and b <= begin + len(part)]
    return [inside[0], inside[-1] + 1]


def answer(server: Engine, tokenizer: Any, prompt: str, wish: Any) -> Answer:
    """Without prefix hits."""
    assert server.llm.reset_prefix_cache()
    return ask(server, tokenizer(prompt)["input_ids"], wish)


def test_texts_reuse_what_spans_reuse(server: Engine, tokenizer: Any) -> None:
    for document in (FIRST, SECOND):
        ids = tokenizer(document)["input_ids"]
        alone = answer(server, tokenizer, document, {"texts": [document], "reuse": False})
        assert alone.details == {
            "prefix_tokens": 0,
            "segment_tokens": 0,
            "recomputed_tokens": len(ids),
            "segments": 0,
        }
    assert worker().store.counters().stored == 2
    spans = [span(tokenizer, FIRST), span(tokenizer, SECOND)]
    by_span = answer(server, tokenizer, PROMPT, {"spans": spans})
    by_text = answer(server, tokenizer, PROMPT, {"texts": [SECOND, FIRST]})
    assert by_text.details == by_span.details
    assert by_span.details["segments"] == 2
    assert by_span.reused > 400
    assert_same([by_text.completion], [by_span.completion])
    # One of them marked alone, beside one that is not there: the other is computed.
    one = answer(server, tokenizer, PROMPT, {"texts": ["Nobody has said this at any time.", SECOND]})
    alone = answer(server, tokenizer, PROMPT, {"spans": spans[1:]})
    assert one.details.pop("problem") == "not found in the prompt, and left out: texts[0]"
    assert one.details == alone.details
    assert_same([one.completion], [alone.completion])


def test_a_document_marked_by_its_text_is_stored_where_it_stands(server: Engine, tokenizer: Any) -> None:
    document = essays()[20_000:21_000].strip()
    stored = worker().store.counters().stored
    prompt = f"Read this:\n{document}\nWhat?"
    assert answer(server, tokenizer, prompt, {"texts": [document]}).reused == 0
    assert worker().store.counters().stored == stored + 1
    again = answer(server, tokenizer, f"Now this:\n{document}\nWhy?", {"texts": [document], "boundary": 0})
    assert again.details["segments"] == 1
    assert again.details["recomputed_tokens"] < 16
