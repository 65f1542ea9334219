"""vLLM's own KV-cache tests with the plugin registered, and the comparison that judges them."""

from pathlib import Path

import pytest

from tools.vllm_own_tests import (
    TEST_FILES,
    SourceUnavailableError,
    compare,
    default_cache,
    differences,
    table,
)
from tools.vllm_own_tests import test_folder as unpack_tests

PASSED = {"a.py::x": "passed", "a.py::y": "failed", "b.py::z": "skipped"}


def test_equal_outcomes_are_no_difference() -> None:
    assert differences(PASSED, dict(PASSED)) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"a.py::x": "failed"}, "a.py::x: passed without the plugin, failed with it"),
        ({"b.py::z": "passed"}, "b.py::z: skipped without the plugin, passed with it"),
        ({"c.py::new": "passed"}, "c.py::new: absent without the plugin, passed with it"),
    ],
)
def test_every_changed_outcome_is_named(changed: dict[str, str], line: str) -> None:
    assert differences(PASSED, {**PASSED, **changed}) == [line]
    assert f"- {line}" in table("0.32.0", PASSED, {**PASSED, **changed})


def test_the_table_counts_per_file() -> None:
    text = table("0.32.0", PASSED, PASSED)
    assert "| a.py | 1 | 1 | 0 | 1 | 1 |" in text
    assert "| b.py | 0 | 0 | 1 | 0 | 0 |" in text
    assert "the plugin changes: 0." in text


def test_a_source_without_tests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailableError, match="has no tests/v1/core: give an unpacked vLLM"):
        unpack_tests("0.32.0", tmp_path / "cache", tmp_path)


def test_only_the_tests_are_taken_from_a_source(tmp_path: Path) -> None:
    for name in ("tests/v1/core/test_x.py", "vllm/__init__.py"):
        (tmp_path / "sdist" / name).parent.mkdir(parents=True)
        (tmp_path / "sdist" / name).touch()
    folder = unpack_tests("0.32.0", tmp_path / "cache", tmp_path / "sdist")
    assert (folder / "tests/v1/core/test_x.py").exists()
    assert not (folder / "vllm").exists()
    assert (folder / "facebook/opt-125m/config.json").exists()


@pytest.mark.slow
def test_vllms_own_tests_pass_with_the_plugin_as_without() -> None:
    try:
        _, stock, plugin = compare(TEST_FILES, default_cache(), None)
    except SourceUnavailableError as reason:
        pytest.skip(f"vLLM's tests could not be had: {reason}")
    assert len(stock) > 300
    assert differences(stock, plugin) == []
