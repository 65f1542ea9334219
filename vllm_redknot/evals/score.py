"""What one case scored in both engines, and the table cells that cases add up to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from vllm_redknot.evals.statistics import compare

Task = Literal["essays", "needle", "named", "squad", "hotpotqa"]
Metric = Literal["nll", "kl", "top-1 agreement", "found", "f1", "exact match"]


@dataclass(frozen=True)
class Place:
    """Where in the tables a case belongs. `depth` is None for tasks without one; `length` is in tokens."""

    task: Task
    length: int
    depth: float | None = None


@dataclass(frozen=True)
class Score:
    """One case by one metric. `stock` is None for what compares the engines with each other."""

    place: Place
    metric: Metric
    stock: float | None
    redknot: float


def cells(scores: Iterable[Score], seed: int) -> list[dict[str, Any]]:
    """A cell per task, metric, length and depth, and one of all depths with depth None; as docs/cli.md has it."""
    groups: dict[tuple[Task, Metric, int, float | None], list[Score]] = defaultdict(list)
    for score in scores:
        place = score.place
        for depth in dict.fromkeys((None, place.depth)):
            groups[place.task, score.metric, place.length, depth].append(score)
    order = sorted(groups, key=lambda key: (key[0], key[1], key[2], -1.0 if key[3] is None else key[3]))
    return [_cell(*key, groups[key], seed) for key in order]


def _cell(
    task: Task, metric: Metric, length: int, depth: float | None, scores: list[Score], seed: int
) -> dict[str, Any]:
    paired = [score.stock for score in scores if score.stock is not None]
    found = compare(
        paired or None,
        [score.redknot for score in scores],
        seed,
        f"{task} {metric} {length} {depth}",
    )
    return {
        "task": task,
        "metric": metric,
        "length": length,
        "depth": depth,
        "n": found.n,
        "stock": None if found.stock is None else found.stock.to_json(),
        "redknot": found.redknot.to_json(),
        "difference": None if found.difference is None else found.difference.to_json(),
        "within_noise": found.within_noise,
    }
