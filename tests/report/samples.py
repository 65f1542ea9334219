"""Documents of every kind, as the commands write them, small and with numbers that are easy to find again."""

from __future__ import annotations

from typing import Any

LENGTHS, DEPTHS = (1024, 2048, 4096, 7168), (0.0, 0.25, 0.5, 0.75, 1.0)
LAYERS, HEADS = 12, 4
MODEL = "Small-Model"


def estimate(value: float) -> dict[str, float]:
    """A value with an interval."""
    return {"value": value, "low": max(0.0, value - 0.05), "high": min(1.0, value + 0.05)}


def cell(task: str, length: int | None, depth: float | None, stock: float, ours: float) -> dict[str, Any]:
    """One cell of an evaluation."""
    return {
        "task": task,
        "metric": "found",
        "length": length,
        "depth": depth,
        "n": 25,
        "stock": estimate(stock),
        "redknot": estimate(ours),
        "difference": {"value": ours - stock, "low": ours - stock - 0.1, "high": ours - stock + 0.1},
        "within_noise": abs(ours - stock) < 0.1,
    }


def evaluation() -> dict[str, Any]:
    """A needle grid, two fidelity rows and two of questions."""
    needle = [
        cell("single needle", length, depth, 1.0, 0.4 + 0.15 * DEPTHS.index(depth))
        for length in LENGTHS
        for depth in DEPTHS
    ]
    needle += [cell("single needle", length, None, 1.0, 0.7) for length in LENGTHS]
    needle += [{**one, "metric": "nll"} for one in needle]
    fidelity = [
        {**cell("essays", 4096, None, 0.0, 0.031), "metric": "KL against dense", "stock": None},
        {**cell("essays", 4096, None, 3.1, 3.14), "metric": "NLL", "difference": None, "within_noise": None},
    ]
    questions = [{**cell(name, 4096, None, 0.31, 0.29), "metric": "F1"} for name in ("SQuAD", "HotpotQA")]
    return {
        "kind": "redknot.eval",
        "format": 1,
        "model": {"name": MODEL, "num_layers": LAYERS},
        "heads": heads_stated(),
        "versions": {"vllm": "0.32.0", "triton": None},
        "seed": 7,
        "choices": {"beyond_window": {"1024": False, "2048": True}},
        "notes": {"intervals": "95%"},
        "suites": {"fidelity": fidelity, "needle": needle, "qa": questions},
    }


def ablated_evaluation() -> dict[str, Any]:
    """An evaluation with every part beside stock."""
    document = evaluation()
    parts: dict[str, Any] = {}
    for name, share, found in (("heads", 0.273, 0.72), ("rows", 1.0, 0.91), ("both", 0.273, 0.63)):
        cells = [cell("single needle", length, None, 1.0, found) for length in LENGTHS]
        schedule = None if name == "heads" else {"ffn_from": 8}
        parts[name] = {
            "description": f"what {name} is",
            "kv_share": share,
            "row_schedule": schedule,
            "suites": {"needle": cells},
        }
    return {**document, "row_schedule": {"ffn_from": 8}, "ablation": parts}


def ablated_bench() -> dict[str, Any]:
    """Rows with every part beside stock."""
    document = bench()
    for row in document["rows"]:
        stock = row["stock"]["median"]
        row["ablation"] = {
            name: {"median": ratio * stock, "samples": [ratio * stock], "ratio": ratio}
            for name, ratio in (("heads", 0.5), ("rows", 0.75), ("both", 0.25))
        }
    parts = {
        name: {
            "description": f"what {name} is",
            "kv_share": 0.5,
            "row_schedule": schedule,
            "rows_skipped": skipped,
        }
        for name, schedule, skipped in (
            ("heads", None, None),
            ("rows", {"ffn_from": 8}, {"attention": 0.19, "ffn": 0.32}),
            ("both", {"ffn_from": 8}, {"attention": 0.19, "ffn": 0.32}),
        )
    }
    skipped = {"attention": 0.19, "ffn": 0.32}
    return {**document, "row_schedule": {"ffn_from": 8}, "rows_skipped": skipped, "ablation": parts}


def heads_stated() -> dict[str, Any]:
    """What a document says of its head classes."""
    return {
        "origin": "heads.json (the setting `heads`, native version 1)",
        "description": "9 global of 48 heads",
        "fingerprint": "0123456789abcdef",
        "kv_share": 0.273,
    }


def bench() -> dict[str, Any]:
    """Rows of all metrics."""

    def row(workload: str, metric: str, unit: str, stock: float, ours: float, better: str) -> dict[str, Any]:
        return {
            "workload": workload,
            "metric": metric,
            "unit": unit,
            "stock": {"median": stock, "samples": [0.9 * stock, stock, 1.2 * stock]},
            "redknot": {"median": ours, "samples": [ours]},
            "ratio": ours / stock,
            "better": better,
        }

    return {
        "kind": "redknot.bench",
        "format": 1,
        "model": MODEL,
        "heads": heads_stated(),
        "machine": {"cpu": "A processor", "cpus": 2},
        "versions": {"vllm": "0.32.0"},
        "rows": [
            row("prompt of 512 tokens, alone", "time to first token", "s", 0.61, 0.62, "lower"),
            row("prompt of 7500 tokens, alone", "time to first token", "s", 33.8, 14.2, "lower"),
            row("8 x 6000 tokens at once", "inter-token latency", "ms", 251.0, 120.0, "lower"),
            row("32 x 4000 tokens at once", "throughput", "tokens/s", 212.0, 468.0, "higher"),
            row("longest request, 8192 tokens", "KV bytes of a request", "bytes", 2.0**27, 2.0**25, "lower"),
            row("longest request, 8192 tokens", "maximum concurrency", "requests", 1234.0, 4321.0, "higher"),
            row("anything", "of a long unit", "widgets of 300 letters each", 1.0, 2.0, "higher"),
        ],
    }


def profile() -> dict[str, Any]:
    """Scores, and a curve with windows and seeds."""
    curve: list[dict[str, Any]] = []
    for share in (0.05, 0.15, 0.25, 0.5, 1.0):
        for window in (256, 1024):
            curve.append(point("ours", share, window, None, 1.0 - 0.3 * (1 - share)))
        for seed in range(3):
            curve.append(point("random", share, 256, seed, share * (0.8 + 0.1 * seed)))
    curve.append(point("all local", 0.0, 256, None, 0.0))
    return {
        "kind": "redknot.profile",
        "format": 1,
        "model": MODEL,
        "shape": [LAYERS, HEADS],
        "scores": {
            "retrieval mass": [[(layer * head % 7) / 7 for head in range(HEADS)] for layer in range(LAYERS)]
        },
        "curve": curve,
        "chosen": {"kv_share": 0.27, "context": 8192, "description": "9 global"},
        "verification": {"failures": [], "comparisons": [{"task": "needle", "n": 100, "nll": 0.12345}]},
    }


def point(
    assignment: str, share: float, window: int | None, seed: int | None, needle: float
) -> dict[str, Any]:
    """One point of the curve."""
    return {
        "assignment": assignment,
        "global_share": share,
        "window": window,
        "kv_share": 0.1 + 0.9 * share + (0.05 if window == 1024 else 0.0) * (1 - share),
        "seed": seed,
        "metrics": {"needle": needle, "named": 0.6 * needle, "nll_increase": 0.5 * (1 - needle)},
    }


def heads() -> dict[str, Any]:
    """A native head-class file: global heads, and local ones with two windows."""
    rows = []
    for layer in range(LAYERS):
        classes = ["global" if (layer + head) % 5 == 0 else "local" for head in range(HEADS)]
        window = [1024 if name == "local" and head == 3 else None for head, name in enumerate(classes)]
        rows.append({"layer": layer, "classes": classes, "window": window})
    return {
        "format": "redknot-head-profile",
        "version": 1,
        "model": {"name": MODEL, "num_layers": LAYERS, "num_kv_heads": HEADS},
        "provenance": {"tool": "a test", "notes": "made by hand"},
        "defaults": {"window": 256, "sink": 4},
        "layers": rows,
    }
