"""The tables of `redknot verify-reuse`, from its document."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console

from vllm_redknot.cli.app import print_table
from vllm_redknot.reuse.receipt import FEW_QUESTIONS

TITLES: Final = {
    "needle": "One document states a passcode",
    "named": "Documents state named passcodes, one asked for",
    "squad": "SQuAD v2, answerable questions, each paragraph a document",
    "hotpotqa": "HotpotQA, each paragraph a document",
}
Cell = Mapping[str, Any]


def show_verification(out: Console, document: Mapping[str, Any]) -> None:
    """A table per task with 95% intervals, what was found by place, and the budget."""
    out.print(document["heads"]["origin"], style="bold", soft_wrap=True)
    out.print(document["heads"]["description"], soft_wrap=True)
    out.print(
        f"{_repair(document)}: {document['reused_share']:.1%} of the prompts' tokens come from the store."
        " Means with bootstrap 95% intervals; a difference is noise if its interval holds zero.",
        soft_wrap=True,
    )
    if document["row_schedule"] is not None:
        out.print(f"Both answers skip rows: {json.dumps(document['row_schedule'])}.", soft_wrap=True)
    for task, title in TITLES.items():
        cells = [cell for cell in document["figures"] if cell["task"] == task]
        out.print()
        out.print(title, style="bold")
        columns = ["metric", "n", "dense", "reuse", "difference", "verdict"]
        print_table(out, columns, (_row(cell) for cell in cells if cell["position"] is None))
        found = [cell for cell in cells if cell["metric"] == "found" and cell["position"] is not None]
        if found:
            out.print("Found by the document's place in the prompt, reuse of dense:")
            places = [f"place {cell['position'] + 1}" for cell in found]
            print_table(out, places, [[_found(cell) for cell in found]])
    out.print()
    out.print("Budget", style="bold")
    print_table(out, ["task", "metric", "dense", "reuse", "limit", "kept"], map(_check, document["checks"]))
    for line in _outcome(document):
        out.print(line, soft_wrap=True)


def _outcome(document: Mapping[str, Any]) -> Iterator[str]:
    if not document["passed"]:
        yield "The budget is not kept: no receipt is written."
        return
    yield f"The budget is kept. Receipt: {document['receipt']}"
    if (asked := document["asked"]["questions"]) < FEW_QUESTIONS:
        yield f"It rests on {asked} questions of a data set, too few to see a loss: servers that take it will warn."
    section = {
        "reuse": "on",
        "receipt": document["receipt"],
        "store": "FOLDER",
        **(
            {"boundary": document["boundary"]}
            if document["share"] is None
            else {"policy": document["policy"], "share": document["share"]}
        ),
    }
    yield f"To serve with it: --additional-config {shlex.quote(json.dumps({'redknot': section}))}"


def _repair(document: Mapping[str, Any]) -> str:
    if document["share"] is None:
        return f"Boundary {document['boundary']}"
    return f"Blend of {document['share']:.1%}"


def _row(cell: Cell) -> Sequence[str]:
    verdict = {None: "too few", True: "noise", False: "differs"}[cell["within_noise"]]
    return [
        cell["metric"],
        str(cell["n"]),
        _estimate(cell["dense"]),
        _estimate(cell["reuse"]),
        _estimate(cell["difference"], "+"),
        "" if cell["difference"] is None else verdict,
    ]


def _check(check: Mapping[str, Any]) -> Sequence[str]:
    values = [f"{check[key]:.3f}" for key in ("dense", "reuse", "limit")]
    return [check["task"], check["metric"], *values, "yes" if check["passed"] else "NO"]


def _estimate(value: Mapping[str, float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value['value']:{sign}.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _found(cell: Cell) -> str:
    reuse, dense = (round(cell[which]["value"] * cell["n"]) for which in ("reuse", "dense"))
    return f"{reuse}/{dense} of {cell['n']}"
