"""Requests that turn row skipping or reuse off where both are on, stores of other schedules, and what is counted."""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Completion, Engine, assert_same, engine
from tests.engine.head_files import with_rows
from tests.engine.reuse_engine import ask, marks, reusing, store_alone, worker
from tests.engine.reuse_world import LIMITS, World
from vllm_redknot.attention.model import find_model

pytestmark = pytest.mark.slow

ROWS = {"ffn_from": 1, "attention_from": 2, "sink": 3, "recent": 40}
OFF = {"redknot_rows": "off"}
SETTINGS = {"min_reuse": 31, "rows": ROWS}


def scope(server: Engine) -> Any:
    """Of a server's store."""
    del server  # it runs in this process
    return worker().store.scope


def test_a_request_with_rows_off_reuses_and_stores_nothing_and_says_why(world: World, tmp_path: Path) -> None:
    document, other, question = world.tokens(200), world.tokens(150), world.tokens(50)
    prompts = [[*question, *document, *question], [*other, *question]]
    limits = {"dtype": "float32", "enable_prefix_caching": False, **LIMITS}
    with engine(world.folder, {"heads": world.heads}, **limits) as plain:
        expected = [plain.complete([prompt])[0] for prompt in prompts]
        logprobs = plain.complete(prompts[:1], prompt_logprobs=True)
    with reusing(world.folder, tmp_path, world.heads, SETTINGS, **LIMITS) as server:
        store_alone(server, document)
        for prompt, spans, answer in zip(prompts, ([[50, 250]], [[0, 150]]), expected, strict=True):
            got = ask(server, prompt, {"spans": spans}, **OFF)
            assert got.reused == 0
            assert 'redknot_rows is "off" in this request' in got.details["problem"]
            assert_same([got.completion], [answer])
            # Nobody asked for reuse, so nothing is said.
            assert "problem" not in ask(server, prompt, "off", **OFF).details
        assert worker().store.counters().stored == 1
        # With rows skipped both are served: the first is reused, the second stored.
        server.llm.reset_prefix_cache()
        assert ask(server, prompts[0], {"spans": [[50, 250]]}).reused == 184
        assert ask(server, prompts[1], {"spans": [[0, 150]]}).reused == 0
        assert worker().store.counters().stored == 2
        # Prompt logprobs: neither skips nor reuses, which is no problem.
        whole = server.complete(prompts[:1], prompt_logprobs=True)
        assert_same(whole, logprobs)


def test_a_store_serves_one_schedule_whether_the_file_or_the_setting_states_it(
    world: World, tmp_path: Path
) -> None:
    document, question = world.tokens(200), world.tokens(50)
    prompt, spans = [*question, *document, *question], {"spans": [[50, 250]]}
    stating = with_rows(world.heads, ROWS, tmp_path)
    servers = {
        "off": (world.heads, "off"),
        "setting": (world.heads, ROWS),
        "file": (stating, None),
        "file and off": (stating, "off"),
        "file and another": (stating, {**ROWS, "recent": 41}),
    }
    scopes: dict[str, str] = {}
    reused: dict[str, int] = {}
    answers: dict[str, Completion] = {}
    for name, (heads, rows) in servers.items():
        settings = {"min_reuse": 31} if rows is None else {"min_reuse": 31, "rows": rows}
        with reusing(world.folder, tmp_path / "store", heads, settings, **LIMITS) as server:
            scopes[name] = scope(server).name
            answer = ask(server, prompt, spans)
            answers[name], reused[name] = answer.completion, answer.reused
            # Stored by the first server of each kind.
            store_alone(server, document)
    assert scopes["file"] == scopes["setting"]
    assert scopes["file and off"] == scopes["off"]
    assert len(set(scopes.values())) == 3
    assert reused == {"off": 0, "setting": 0, "file": 184, "file and off": 184, "file and another": 0}
    assert answers["file"].logprobs != answers["setting"].logprobs


def test_rows_are_counted_of_tokens_that_are_computed_alone(world: World, tmp_path: Path) -> None:
    intro, document, question = world.tokens(21), world.tokens(200), world.tokens(60)
    with reusing(world.folder, tmp_path, world.heads, SETTINGS, **LIMITS) as server:
        store_alone(server, document)
        model = find_model(server.llm.llm_engine.vllm_config.compilation_config.static_forward_context)
        assert model is not None
        assert model.rows is not None
        before = model.rows.counters.rows.copy()
        answer = ask(server, [*intro, *document, *question], {"spans": marks(document, begin=21)})
        assert answer.reused == 184
        counted = model.rows.counters.rows - before
    # A step of 21 tokens and a boundary of 16, of which 3 are sinks, and one of 60, of which 40 are recent.
    tokens, skipped = 37 + 60, 34 + 20
    late = {"attention": 1, "ffn": 2}
    assert counted == {
        **{(kind, "computed"): 3 * tokens - layers * skipped for kind, layers in late.items()},
        **{(kind, "skipped"): layers * skipped for kind, layers in late.items()},
    }
