"""A machine that cannot hold the environment is told why."""

import pytest

from tools.check_machine import complaints


@pytest.mark.parametrize("version", [(2, 7), (3, 10), (3, 14)])
def test_other_pythons_are_refused_with_the_supported_ones_named(version: tuple[int, int]) -> None:
    (line,) = complaints(version, "true")
    assert f"Python {version[0]}.{version[1]}" in line
    assert "3.11 to 3.13" in line


@pytest.mark.parametrize("version", [(3, 11), (3, 12), (3, 13)])
def test_supported_pythons_pass(version: tuple[int, int]) -> None:
    assert complaints(version, "true") == []


def test_a_missing_compiler_is_named_with_what_to_install() -> None:
    (line,) = complaints((3, 12), "no-such-g++")
    assert "no-such-g++" in line
    assert "build-essential" in line
