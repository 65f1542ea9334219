"""The tables of `redknot eval`, from its document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console

from vllm_redknot.cli.app import print_table
from vllm_redknot.cli.units import show_tokens

TITLES: Final = {
    "essays": "Held-out essays",
    "needle": "One needle",
    "named": "Four named needles, one asked for",
    "squad": "SQuAD v2, answerable questions",
    "hotpotqa": "HotpotQA",
}
DIFFERS: Final = " *"
"""Behind a value whose difference from stock is more than noise."""
Cell = Mapping[str, Any]


def show_document(out: Console, document: Mapping[str, Any]) -> None:
    """A table per task: totals with 95% intervals, then what was found by depth."""
    heads = document["heads"]
    out.print(heads["origin"], style="bold", soft_wrap=True)
    out.print(heads["description"], soft_wrap=True)
    longest = show_tokens(max(document["choices"]["lengths"]))
    out.print(
        f"{heads['kv_share']:.1%} of stock's KV bytes at {longest}. Means with bootstrap 95% intervals; a difference"
        " is noise if its interval holds zero.",
        soft_wrap=True,
    )
    ablation = document["ablation"]
    if ablation:
        out.print(f"{DIFFERS.strip()} differs from stock. {_parts(ablation)}", soft_wrap=True)
    for suite, cells in document["suites"].items():
        if suite == "fidelity" and document["row_schedule"] is not None:
            out.print()
            out.print(f"Of row skipping: {document['notes']['rows']}.", soft_wrap=True)
        if suite == "needle":
            out.print()
            out.print(_placement(document["choices"]), soft_wrap=True)
        for task, title in TITLES.items():
            ours = [cell for cell in cells if cell["task"] == task]
            if not ours:
                continue
            out.print()
            out.print(title, style="bold")
            totals = [cell for cell in ours if cell["depth"] is None]
            if ablation:
                columns = ["metric", "length", "n", "stock", *ablation]
                print_table(out, columns, (_ablated(cell, ablation, suite) for cell in totals))
            else:
                columns = ["metric", "length", "n", "stock", "REDKNOT", "difference", "verdict"]
                print_table(out, columns, map(_row, totals))
            grid = list(_grid(ours))
            if grid:
                out.print("Found by depth, REDKNOT of stock:")
                print_table(out, ["length", *grid[0]], grid[1:])


def _placement(choices: Mapping[str, Any]) -> str:
    window = choices["window"]
    if window is None:
        return "Needles lie at depths of the whole text, near ones within the local windows."
    beyond = [int(length) for length, found in choices["beyond_window"].items() if found]
    within = [int(length) for length, found in choices["beyond_window"].items() if not found]
    told = f"Every needle lies farther back than {window} tokens, the largest local window"
    if beyond:
        told += f", at {_listed(beyond)}; depths are fractions of the text beyond that"
    if not within:
        return f"{told}."
    short = f"{_listed(within)} is too short for that: some lie within the window"
    return f"{told}. {short}." if beyond else f"{short} of {window} tokens."


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(show_tokens(length) for length in sorted(lengths))


def _parts(ablation: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{name} {part['kv_share']:.1%}" for name, part in ablation.items())
    return f"KV bytes of stock's: {shares}."


def _ablated(cell: Cell, ablation: Mapping[str, Any], suite: str) -> list[str]:
    """A cell of all configurations. Their documents have the same cells, for they were asked the same."""
    place = _place(cell)
    found = [next(one for one in part["suites"][suite] if _place(one) == place) for part in ablation.values()]
    marked = [_estimate(one["redknot"]) + DIFFERS * (one["within_noise"] is False) for one in found]
    return [*_row(cell)[:4], *marked]


def _place(cell: Cell) -> tuple[Any, ...]:
    return cell["task"], cell["metric"], cell["length"], cell["depth"]


def _row(cell: Cell) -> list[str]:
    verdict = {None: "too few", True: "noise", False: "differs"}[cell["within_noise"]]
    return [
        cell["metric"],
        show_tokens(cell["length"]),
        str(cell["n"]),
        _estimate(cell["stock"]),
        _estimate(cell["redknot"]),
        _estimate(cell["difference"], "+"),
        "" if cell["difference"] is None else verdict,
    ]


def _estimate(value: Mapping[str, float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value['value']:{sign}.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _grid(cells: Sequence[Cell]) -> Iterator[list[str]]:
    """The depths, then a row per length; nothing for tasks without depths."""
    found = {
        (cell["length"], cell["depth"]): cell
        for cell in cells
        if cell["metric"] == "found" and cell["depth"] is not None
    }
    depths = sorted({depth for _, depth in found})
    if not depths:
        return
    yield [f"{depth:g}" for depth in depths]
    for length in sorted({length for length, _ in found}):
        yield [
            show_tokens(length),
            *(_found(found[length, depth]) if (length, depth) in found else "" for depth in depths),
        ]


def _found(cell: Cell) -> str:
    stock, ours = (round(cell[engine]["value"] * cell["n"]) for engine in ("stock", "redknot"))
    return f"{ours}/{stock} of {cell['n']}"
