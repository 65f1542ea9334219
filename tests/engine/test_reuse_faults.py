"""Whatever goes wrong with stored KV, the answer is that of a dense request, and what happened is said."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.harness import Engine, assert_same
from tests.engine.reuse_engine import (
    Answer,
    Question,
    ask,
    ask_all,
    connector,
    leases,
    marks,
    reusing,
    store_alone,
    worker,
)
from tests.engine.reuse_world import LIMITS, World
from vllm_redknot.reuse import tracker
from vllm_redknot.reuse.relocate import Relocator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def server(world: World, store: Path) -> Iterator[Engine]:
    # No memory beyond one document's: segments come from disk.
    settings = {"min_reuse": 31, "store_memory_gib": 0.001}
    with reusing(world.folder, store, world.heads, settings, **LIMITS) as started:
        yield started


class Case:
    """Two stored documents, a prompt of them, and its dense answer."""

    def __init__(self, server: Engine, world: World) -> None:
        self.server = server
        first, second, question = world.tokens(150), world.tokens(170), world.tokens(20)
        store_alone(server, first, second)
        assert worker().store.flush()
        self.prompt = [*question, *first, *second, *question]
        self.control = {"spans": marks(first, second, begin=20), "boundary": 0}
        self.dense = ask(server, self.prompt, "off").completion
        server.llm.reset_prefix_cache()

    def answer(self) -> Answer:
        self.server.llm.reset_prefix_cache()
        return ask(self.server, self.prompt, self.control)


@pytest.fixture
def case(server: Engine, world: World) -> Case:
    case = Case(server, world)
    assert case.answer().reused == 320
    return case


def test_a_load_that_fails_starts_the_request_over_without_reuse(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(*arguments: Any) -> None:
        calls.append(arguments)
        raise RuntimeError("injected")

    monkeypatch.setattr(Relocator, "load", fail)
    free = case.server.free_blocks
    got = case.answer()
    assert calls
    assert (got.reused, got.details["faults"]) == (0, 1)
    assert_same([got.completion], [case.dense])
    assert case.server.free_blocks == free
    monkeypatch.undo()
    assert case.answer().reused == 320


def test_a_load_that_fails_beside_others_touches_only_its_request(
    case: Case, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Question(world.tokens(77), "off")
    expected = ask_all(case.server, [other])[0]
    load, failures = Relocator.load, []

    def fail_once(*arguments: Any) -> None:
        if not failures:
            failures.append(arguments)
            raise RuntimeError("injected")
        load(*arguments)

    monkeypatch.setattr(Relocator, "load", fail_once)
    case.server.llm.reset_prefix_cache()
    question = Question(case.prompt, case.control)
    broken, beside, sound = ask_all(case.server, [question, other, question])
    assert (broken.reused, sound.reused) == (0, 320)
    assert_same([broken.completion, beside.completion], [case.dense, expected.completion])


@pytest.mark.parametrize("what", ["truncated", "flipped", "missing", "denied"])
def test_a_damaged_segment_is_computed_and_stored_anew(what: str, case: Case, store: Path) -> None:
    dropped = worker().store._catalog.memory
    for content in list(dropped._entries):
        entry = dropped._entries.pop(content)
        dropped.used_bytes -= entry.segment.nbytes
    for path in store.rglob("*.safetensors"):
        if what == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif what == "flipped":
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        elif what == "missing":
            path.unlink()
        else:
            path.chmod(0)
    got = case.answer()
    if what == "denied":
        # Root may read it all the same.
        assert got.reused in (0, 320)
    else:
        assert got.reused == 0
        assert got.details["faults"] == 2
        assert_same([got.completion], [case.dense])
    for path in store.rglob("*.safetensors"):
        path.chmod(0o600)


def test_a_lookup_that_takes_too_long_is_not_waited_for(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    find = type(worker().store).find

    def slow(*arguments: Any) -> Any:
        time.sleep(2.0)
        return find(*arguments)

    monkeypatch.setattr(type(worker().store), "find", slow)
    monkeypatch.setattr(connector(case.server).tracker, "_patience", 0.2)
    started = time.monotonic()
    got = case.answer()
    assert time.monotonic() - started < 1.9
    assert (got.reused, got.details["faults"]) == (0, 1)
    assert_same([got.completion], [case.dense])
    time.sleep(2.0)
    monkeypatch.undo()
    assert tracker.PATIENCE > 0
    assert case.answer().reused == 320
    assert leases(worker()) <= 2


def test_a_lookup_that_raises_is_a_fault_of_its_request(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("injected")

    monkeypatch.setattr(type(worker().store), "find", fail)
    got = case.answer()
    assert (got.reused, got.details["faults"]) == (0, 1)
    assert_same([got.completion], [case.dense])
