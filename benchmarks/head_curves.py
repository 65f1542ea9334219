"""Quality against the share of global heads, for several ways to choose them, on one model.

`python -m benchmarks.head_curves EVIDENCE` takes what `redknot profile` left beside a head file, and adds the curve to
a copy of it in benchmarks/results/head_curves.json, which `redknot report` draws. Cases are of the held-out half. The
run goes on from its journal when it is interrupted.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from benchmarks.machine import describe_machine
from tools.smollm2_folder import default_folder
from vllm_redknot.evals.cases import Case
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.calibration import Mixture
from vllm_redknot.profiler.choose import choose_by_fraction, choose_by_share, kept_share, steps_by_density
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.journal import open_journal
from vllm_redknot.profiler.verify import Judge, Limits, Verdict

RESULTS: Final = Path(__file__).parent / "results"
FRACTIONS: Final = (0.05, 0.1, 0.15, 0.25, 0.5)
CONTEXT: Final = 8192
SINK: Final = 4
WINDOW: Final = 256
Values = list[list[list[float]]]


@dataclass(frozen=True)
class Point:
    """One profile of the curve."""

    assignment: str
    profile: HeadProfile
    window: int | None
    seed: int | None = None


def one_step(matrix: list[list[float]]) -> Values:
    """A score per head as the value of one step, from local to global."""
    return [[[value] for value in row] for row in matrix]


def mean_of(scores: dict[str, list[list[float]]], name: str) -> list[list[float]]:
    """Mean over the tasks of one kind of score, each task scaled to a sum of 1."""
    matrices = [matrix for key, matrix in scores.items() if key.startswith(name)]
    sums = [sum(map(sum, matrix)) for matrix in matrices]
    rows, heads = len(matrices[0]), len(matrices[0][0])
    return [
        [
            sum(matrix[row][head] / total for matrix, total in zip(matrices, sums, strict=True))
            for head in range(heads)
        ]
        for row in range(rows)
    ]


def random_scores(rows: int, heads: int, seed: int) -> list[list[float]]:
    """A random order of heads."""
    draw = random.Random(seed)
    return [[draw.random() for _ in range(heads)] for _ in range(rows)]


def layer_scores(matrix: list[list[float]]) -> list[list[float]]:
    """Whole layers: every head has its layer's sum."""
    return [[sum(row)] * len(row) for row in matrix]


def even_scores(matrix: list[list[float]]) -> list[list[float]]:
    """Equally many heads of every layer: first the best of each, then the second best."""
    return [[-float(sorted(row, reverse=True).index(value)) + value / 1e6 for value in row] for row in matrix]


def points(evidence: dict[str, Any], quick: bool) -> Iterator[Point]:
    """All profiles of the curve."""
    scores, steps = evidence["scores"], evidence["steps"]
    rows, heads = evidence["shape"]
    layers = tuple(range(rows))
    weights = evidence["plan"]["weights"]
    tasks = steps["values"]
    combined = [
        [
            [
                sum(weights[task] * tasks[task][row][head][step] for task in tasks)
                for step in range(len(steps["windows"]) - 1)
            ]
            for head in range(heads)
        ]
        for row in range(rows)
    ]
    value = [[sum(gains) for gains in row] for row in combined]

    def at(matrix: list[list[float]], fraction: float, window: int = WINDOW) -> HeadProfile:
        return choose_by_fraction(one_step(matrix), layers, window, SINK, fraction)

    yield Point("all local", at(value, 0.0), WINDOW)
    fractions = FRACTIONS[2:3] if quick else FRACTIONS
    for fraction in fractions:
        yield Point("value (integrated gradients)", at(value, fraction), WINDOW)
    ladder = steps_by_density(combined, steps["windows"], SINK, CONTEXT)
    for share in (0.187,) if quick else (0.1, 0.14, 0.187, 0.25, 0.35):
        profile = choose_by_share(ladder, layers, heads, steps["windows"][0], SINK, CONTEXT, share)
        yield Point("value, windows chosen too", profile, None)
    for name, matrix in (
        ("retrieval mass", mean_of(scores, "retrieval mass")),
        ("output deviation", mean_of(scores, "output deviation")),
        ("whole layers, by value", layer_scores(value)),
        ("as many in each layer, by value", even_scores(value)),
    ):
        for fraction in fractions:
            yield Point(name, at(matrix, fraction), WINDOW)
    for seed in range(1 if quick else 5):
        for fraction in fractions:
            yield Point("random", at(random_scores(rows, heads, seed), fraction), WINDOW, seed)
    for window in () if quick else (64, 128, 512, 1024):
        yield Point(f"value, window {window}", at(value, 0.15, window), window)


def described(point: Point, verdict: Verdict) -> dict[str, Any]:
    """The point as the report reads it: recall is relative to n, not to dense."""
    windows = [window for row in point.profile.window for window in row]
    rows = {row.task: row for row in verdict.comparisons}
    return {
        "assignment": point.assignment,
        "global_share": windows.count(None) / len(windows),
        "window": point.window,
        "kv_share": kept_share(point.profile, CONTEXT),
        "seed": point.seed,
        "metrics": {
            "needle": rows["needle"].found / rows["needle"].n,
            "named": rows["named"].found / rows["named"].n,
            "needle_nll": rows["needle"].nll,
            "named_nll": rows["named"].nll,
            "nll_increase": rows["essays"].nll - rows["essays"].dense_nll,
        },
    }


def held_out(tokenizer: Tokenizer, length: int, texts: int) -> list[Case]:
    """Needles farther back than any window chosen, and essays."""
    return Mixture("held-out", (length,), texts, 1030, 31).cases(tokenizer)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evidence", type=Path, help="OUT.evidence.json of `redknot profile`")
    parser.add_argument("--model-folder", type=Path, default=default_folder())
    parser.add_argument("--length", type=int, default=1600, help="tokens of a text")
    parser.add_argument("--texts", type=int, default=4, help="texts of each task")
    parser.add_argument("--quick", action="store_true", help="a point of each kind")
    parser.add_argument("--output", type=Path, default=RESULTS / "head_curves.json")
    arguments = parser.parse_args()
    evidence = json.loads(arguments.evidence.read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(arguments.model_folder / "tokenizer.json"))
    cases = held_out(tokenizer, arguments.length, arguments.texts)
    header = {"length": arguments.length, "texts": arguments.texts, "model": evidence["model"]}
    model = HookedModel(arguments.model_folder, torch.bfloat16)
    curve, dense = [], None
    with open_journal(arguments.output.with_suffix(".journal"), header) as journal:
        judge = Judge(model, cases, journal)
        for point in points(evidence, arguments.quick):
            verdict = judge.compare(point.profile, Limits())
            curve.append(described(point, verdict))
            dense = {row.task: [row.dense_found, row.n, row.dense_nll] for row in verdict.comparisons}
            print(json.dumps(curve[-1]), flush=True)
    document = {
        **evidence,
        "machine": describe_machine(),
        "curve": curve,
        "curve_cases": {**header, "dense": dense},
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
