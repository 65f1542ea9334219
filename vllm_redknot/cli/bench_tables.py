"""The table of `redknot bench`, from its document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from vllm_redknot.cli.app import print_table
from vllm_redknot.cli.units import show_bytes


def show_document(out: Console, document: Mapping[str, Any]) -> None:
    """One table: a row per workload and figure."""
    heads, used = document["heads"], document["settings"]
    out.print(f"{document['model']} with {heads['origin']}", style="bold", soft_wrap=True)
    out.print(f"{heads['description']}; {heads['kv_share']:.1%} of the KV bytes at the longest request")
    brackets = "how many times better than stock's" if document["ablation"] else "lowest to highest"
    out.print(
        f"KV cache of {show_bytes(used['kv_bytes'])}; medians, {brackets} in brackets; ~ where its samples and"
        " stock's overlap."
    )
    if document["row_schedule"] is not None:
        out.print(f"Rows skipped in prefill: {_skipped(document['rows_skipped'])}.")
    if document["ablation"]:
        columns = ["workload", "figure", "stock", *document["ablation"]]
        print_table(out, columns, map(_ablated, document["rows"]))
    else:
        columns = ["workload", "figure", "stock", "REDKNOT", "times better"]
        print_table(out, columns, map(_row, document["rows"]))


def _skipped(rows: Mapping[str, float] | None) -> str:
    if rows is None:
        return "none, no prompt was long enough"
    return ", ".join(f"{share:.1%} of {kind}" for kind, share in rows.items())


def _row(row: Mapping[str, Any]) -> list[str]:
    shown = [_spread(row[side], row["unit"]) for side in ("stock", "redknot")]
    return [row["workload"], _figure(row), *shown, _times(row, {**row["redknot"], "ratio": row["ratio"]})]


def _ablated(row: Mapping[str, Any]) -> list[str]:
    parts = [f"{_median(part, row['unit'])} ({_times(row, part)})" for part in row["ablation"].values()]
    return [row["workload"], _figure(row), _median(row["stock"], row["unit"]), *parts]


def _figure(row: Mapping[str, Any]) -> str:
    metric: str = row["metric"]
    return metric if row["unit"] == "bytes" else f"{metric}, {row['unit']}"


def _times(row: Mapping[str, Any], side: Mapping[str, Any]) -> str:
    """How many times better than stock."""
    ratio, stock, ours = side["ratio"], row["stock"]["samples"], side["samples"]
    if row["better"] == "lower":
        ratio = 1 / ratio if ratio else 0.0
    overlap = max(len(stock), len(ours)) > 1 and min(stock) <= max(ours) and min(ours) <= max(stock)
    return f"{ratio:.2f}x{' ~' if overlap and stock != ours else ''}"


def _spread(side: Mapping[str, Any], unit: str) -> str:
    samples: Sequence[float] = side["samples"]
    low, high = min(samples), max(samples)
    median = _median(side, unit)
    return median if low == high else f"{median} ({_show(low, unit)} to {_show(high, unit)})"


def _median(side: Mapping[str, Any], unit: str) -> str:
    return _show(side["median"], unit)


def _show(value: float, unit: str) -> str:
    return show_bytes(value) if unit == "bytes" else f"{value:,.4g}"
