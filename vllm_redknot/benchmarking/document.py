"""The result document, `"kind": "redknot.bench"`: docs/cli.md describes it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vllm_redknot.benchmarking.run import SIDES
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
    """Rows of medians over all rounds, after `header`, to whose heads the share of KV bytes is added.

    Args:
        header: what is in every document: model, heads, machine, versions, settings.
        context: tokens of a longest request.
        kv_bytes: the KV cache of each server, of one GPU.
    """
    by_side = {side: [found for found in rounds if found.side == side] for side in SIDES}
    rows = [
        _row(
            workload.described,
            QUANTITIES[workload.metric],
            {side: [one for found in by_side[side] for one in found.samples[workload.key]] for side in SIDES},
        )
        for workload in workloads
    ]
    longest = f"longest request, {context} tokens"
    concurrency = {side: [found.max_concurrency for found in by_side[side]] for side in SIDES}
    request = {side: [float(round(kv_bytes / most)) for most in concurrency[side]] for side in SIDES}
    rows += [_row(longest, KV_BYTES, request), _row(longest, CONCURRENCY, concurrency)]
    # By the servers' own figures: the plan cannot know how many batches a server keeps in flight.
    share = statistics.median(concurrency["stock"]) / statistics.median(concurrency["redknot"])
    heads = {**header["heads"], "kv_share": round(share, 4)}
    return {"kind": KIND, "format": FORMAT, **header, "heads": heads, "rows": rows}


def dumps(document: Mapping[str, Any]) -> str:
    """The file's text."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _row(workload: str, quantity: Quantity, samples: Mapping[Side, Sequence[float]]) -> dict[str, Any]:
    """`ratio` is REDKNOT's median over stock's, whichever is better; 0 where stock's median is 0."""
    medians = {side: statistics.median(samples[side]) for side in SIDES}
    return {
        "workload": workload,
        "metric": quantity.name,
        "unit": quantity.unit,
        **{side: {"median": medians[side], "samples": list(samples[side])} for side in SIDES},
        "ratio": medians["redknot"] / medians["stock"] if medians["stock"] else 0.0,
        "better": quantity.better,
    }
