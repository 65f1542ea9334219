"""The grid of letters, at widths from a phone to a wide screen."""

import re

import pytest

from vllm_redknot.heads.head_map import HeadMap, head_map
from vllm_redknot.heads.profile import HeadClass, HeadProfile


def profile_of(rows: list[str], windows: list[int] | None = None, **changes: object) -> HeadProfile:
    """Rows of class letters; the i-th local head has the i-th window, or 64."""
    letters = {cls.value[0].upper(): cls for cls in HeadClass}
    classes = tuple(tuple(letters[letter] for letter in row) for row in rows)
    left = iter(windows or [64] * sum(row.count("L") for row in rows))
    fields: dict[str, object] = {
        "classes": classes,
        "window": tuple(
            tuple(next(left) if cls is HeadClass.LOCAL else None for cls in row) for row in classes
        ),
        "sink": tuple((4,) * len(row) for row in classes),
        "layer_ids": tuple(range(len(rows))),
    }
    return HeadProfile(**{**fields, **changes})  # type: ignore[arg-type]


def cells_of(grid: HeadMap, width: int) -> dict[int, str]:
    """Layer -> its letters, read from the printed lines as an eye would, several grids joined."""
    found: dict[int, str] = {}
    for line in grid.lines(width):
        for panel in re.split(r" {3,}(?=\d+ )", line):
            if match := re.fullmatch(r" *(\d+) +([GDR.](?: ?[GDR.])*)", panel):
                found[int(match[1])] = found.get(int(match[1]), "") + match[2].replace(" ", "")
    return found


def test_every_class_has_its_letter_and_a_legend() -> None:
    grid = head_map(profile_of(["LGL", "RLD"]))
    assert grid.cells == (".G.", "R.D")
    assert {entry.symbol: entry.heads for entry in grid.legend} == {".": 3, "G": 1, "R": 1, "D": 1}
    assert "window 64, sink 4" in next(entry.meaning for entry in grid.legend if entry.symbol == ".")


def test_the_dense_prefix_shows_as_dense() -> None:
    assert head_map(profile_of(["LL", "LL"], dense_prefix_layers=1)).cells == ("DD", "..")


def test_windows_of_several_sizes_are_numbered_by_size() -> None:
    grid = head_map(profile_of(["LLL"], windows=[512, 64, 4096]))
    assert grid.cells == ("213",)
    assert grid.legend[0].meaning == "local: window 64, sink 4"


def test_more_sizes_than_digits_share_digits_in_order() -> None:
    sizes = [2**power for power in range(20)]
    grid = head_map(profile_of(["L" * 20], windows=sizes))
    digits = [int(cell) for cell in grid.cells[0]]
    assert digits == sorted(digits)
    assert set(digits) == set(range(1, 10))
    assert " to " in grid.legend[0].meaning


@pytest.mark.parametrize("width", [20, 40, 80, 120, 250])
@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (30, 3), (80, 8), (43, 64), (7, 12)])
def test_no_line_is_wider_than_the_terminal_and_no_head_is_lost(width: int, layers: int, heads: int) -> None:
    rows = ["".join("LGRL"[(layer * 7 + head * 3) % 4] for head in range(heads)) for layer in range(layers)]
    grid = head_map(profile_of(rows))
    lines = list(grid.lines(width))
    assert max(map(len, lines)) <= width
    assert cells_of(grid, width) == dict(enumerate(grid.cells))


def test_a_hybrid_models_layers_keep_their_numbers() -> None:
    grid = head_map(profile_of(["LG", "GL"], layer_ids=(3, 117)))
    assert cells_of(grid, 80) == {3: ".G", 117: "G."}
