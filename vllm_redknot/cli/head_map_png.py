"""The head map as a picture; the letters stay in it, so that it reads without colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from vllm_redknot.cli.errors import CliError
from vllm_redknot.heads.head_map import LOCAL_SYMBOLS, ONE_LOCAL, HeadMap

COLOURS: Final = {
    "G": "#d1495b",
    "D": "#8f2d56",
    "R": "#edae49",
    ONE_LOCAL: "#d9e6ee",
    **dict(
        zip(
            LOCAL_SYMBOLS,
            (
                "#eef4f8",
                "#dbe9f2",
                "#c5dcea",
                "#aecde0",
                "#95bcd5",
                "#7ba9c8",
                "#6095ba",
                "#4680aa",
                "#2f6a97",
            ),
            strict=True,
        )
    ),
}
MOST_LETTERS: Final = 4096
"""Cells up to which each gets its letter."""


def load_pyplot() -> Any:
    """matplotlib without a display. Raises CliError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise CliError("--png needs matplotlib, which is not installed: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_head_map(found: HeadMap, title: str, path: Path) -> None:
    """Write the picture. Raises CliError without matplotlib, OSError where `path` cannot be written."""
    pyplot = load_pyplot()
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    symbols = [entry.symbol for entry in found.legend]
    rows, heads = len(found.layers), len(found.cells[0])
    figure, axes = pyplot.subplots(
        figsize=(max(5.0, 0.22 * heads + 3.5), max(2.5, 0.16 * rows + 1.0)), dpi=150
    )
    axes.imshow(
        [[symbols.index(cell) for cell in row] for row in found.cells],
        cmap=ListedColormap([COLOURS[symbol] for symbol in symbols]),
        vmin=-0.5,
        vmax=len(symbols) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    if rows * heads <= MOST_LETTERS:
        for row, cells in enumerate(found.cells):
            for head, cell in enumerate(cells):
                axes.text(head, row, cell, ha="center", va="center", fontsize=5, color="#1b1b1b")
    every = max(1, rows // 20)
    axes.set_yticks(range(0, rows, every), [str(layer) for layer in found.layers[::every]], fontsize=6)
    every = max(1, heads // 16)
    axes.set_xticks(range(0, heads, every), [str(head) for head in range(0, heads, every)], fontsize=6)
    axes.set_xlabel("KV head")
    axes.set_ylabel("layer")
    axes.set_title(title, fontsize=8)
    handles = [
        Patch(
            facecolor=COLOURS[entry.symbol],
            edgecolor="#1b1b1b",
            label=f"{entry.symbol}  {entry.meaning} ({entry.heads})",
        )
        for entry in found.legend
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=6, frameon=False)
    figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
