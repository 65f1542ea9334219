"""The result document, `"kind": "redknot.bench"`: docs/cli.md describes it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vllm_redknot import ablation
from vllm_redknot.benchmarking.store import Round, Side
from vllm_redknot.benchmarking.workloads import QUANTITIES, Quantity, Workload

KIND: Final = "redknot.bench"
FORMAT: Final = 1
CONCURRENCY: Final = Quantity("maximum concurrency", "requests", "higher")
KV_BYTES: Final = Quantity("KV bytes of a request", "bytes", "lower")


def bench_document(
    header: Mapping[str, Any],
    workloads: Sequence[Workload],
    rounds: Sequence[Round],
    context: int,
    kv_bytes: int,
) -> dict[str, Any]:
    """Rows of medians over all rounds, after `header`, to which shares of KV bytes and of rows are added.

    Args:
        header: what is in every document: model, heads, machine, versions, settings, and the parts of an ablation.
        context: tokens of a longest request.
        kv_bytes: the KV cache of each server, of one GPU.
    """
    by_side: dict[Side, list[Round]] = {}
    for found in rounds:
        by_side.setdefault(found.side, []).append(found)
    rows = [
        _row(
            workload.described,
            QUANTITIES[workload.metric],
            {
                side: [one for found in by_side[side] for one in found.samples[workload.key]]
                for side in by_side
            },
        )
        for workload in workloads
    ]
    longest = f"longest request, {context} tokens"
    concurrency = {side: [found.max_concurrency for found in by_side[side]] for side in by_side}
    request = {side: [float(round(kv_bytes / most)) for most in concurrency[side]] for side in by_side}
    rows += [_row(longest, KV_BYTES, request), _row(longest, CONCURRENCY, concurrency)]
    # By the servers' own figures: the plan cannot know how many batches a server keeps in flight.
    stock = statistics.median(concurrency["stock"])
    of_sides = {
        _label(side): {
            "kv_share": round(stock / statistics.median(concurrency[side]), 4),
            "rows_skipped": _rows_skipped(by_side[side]),
        }
        for side in by_side
    }
    whole, parts = of_sides[_label(ablation.REDKNOT)], header.get("ablation")
    return {
        "kind": KIND,
        "format": FORMAT,
        **header,
        "heads": {**header["heads"], "kv_share": whole["kv_share"]},
        "rows_skipped": whole["rows_skipped"],
        "ablation": parts and {name: {**part, **of_sides[name]} for name, part in parts.items()},
        "rows": rows,
    }


def _rows_skipped(rounds: Sequence[Round]) -> dict[str, float] | None:
    """Shares by kind, of the prefill steps in which tokens skipped; None where there were none."""
    counts: dict[str, list[float]] = {}
    for found in rounds:
        for kind, count in found.rows.items():
            total = counts.setdefault(kind, [0.0, 0.0])
            total[0] += count.skipped
            total[1] += count.computed + count.skipped
    return {kind: round(skipped / every, 4) for kind, (skipped, every) in counts.items() if every} or None


def dumps(document: Mapping[str, Any]) -> str:
    """The file's text."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _label(side: Side) -> str:
    """What an ablation calls a server."""
    return side if side == "stock" else ablation.LABELS[side]


def _row(workload: str, quantity: Quantity, samples: Mapping[Side, Sequence[float]]) -> dict[str, Any]:
    """`ratio` is a side's median over stock's, whichever is better; 0 where stock's median is 0."""
    sides = {
        side: {"median": statistics.median(of_side), "samples": list(of_side)}
        for side, of_side in samples.items()
    }
    stock = statistics.median(samples["stock"])
    ratios = {side: statistics.median(samples[side]) / stock if stock else 0.0 for side in samples}
    parts = {_label(side): {**sides[side], "ratio": ratios[side]} for side in sides if side != "stock"}
    return {
        "workload": workload,
        "metric": quantity.name,
        "unit": quantity.unit,
        "stock": sides["stock"],
        "redknot": sides["redknot"],
        "ratio": ratios["redknot"],
        "better": quantity.better,
        "ablation": parts if len(parts) > 1 else None,
    }
