"""Scores of every KV head: what its long range is worth, by three measures, over calibration cases.

- retrieval mass: how much the head attends to a needle out of its window (`masked.RecordingAttention`);
- output deviation: how much the head's output changes when it is restricted (the same);
- value of each window: by how much the answer's likelihood falls without it, shared out over heads (`gates`).

Every case costs one pass for the first two, and a pass forward and back for each point of the line from the smallest
windows to the dense model. Results are kept in a journal, case by case.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vllm_redknot.evals.cases import Case
from vllm_redknot.profiler.gates import GatedAttention, attribution
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.journal import Journal
from vllm_redknot.profiler.masked import RecordingAttention, in_order

Matrix = list[list[float]]
Values = list[list[list[float]]]


@dataclass(frozen=True)
class HeadScores:
    """Means over the cases of each task. Rows are layers, columns KV heads; `values` has a third axis, the steps."""

    windows: tuple[int, ...]
    mass: dict[str, Matrix]
    deviation: dict[str, Matrix]
    values: dict[str, Values]


def score_heads(
    model: HookedModel,
    cases: Sequence[Case],
    windows: tuple[int, ...],
    sink: int,
    points: Sequence[float],
    journal: Journal,
    advance: Callable[[], None],
) -> HeadScores:
    """Scores over `cases`; `advance` is called once a pass, `len(cases) * (1 + len(points))` times in all."""
    found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    gated = GatedAttention(windows, sink)
    for case in cases:
        key = f"scores {case.fingerprint()}"
        result = journal.get(key)
        if result is None:
            result = _record(model, case, windows[0], sink)
            advance()
            gradients = []
            for point in points:
                gradients.append(attribution(model, gated, case.prompt, case.answer, point))
                advance()
            result["values"] = _mean([in_order(gradient, sorted(model.layers)) for gradient in gradients])
            journal.add(key, result)
        else:
            for _ in range(1 + len(points)):
                advance()
        for name, value in result.items():
            found[name][case.task].append(value)
    return HeadScores(
        windows,
        {task: _mean(rows) for task, rows in found["mass"].items()},
        {task: _mean(rows) for task, rows in found["deviation"].items()},
        {task: _mean(rows) for task, rows in found["values"].items()},
    )


@torch.inference_mode()
def _record(model: HookedModel, case: Case, window: int, sink: int) -> dict[str, Any]:
    rows = len(case.answer)
    recording = RecordingAttention(window, sink, rows, case.span)
    model.attention = recording
    model.logits(case.prompt + case.answer[:-1], rows)
    layers = sorted(model.layers)
    return {
        "mass": in_order(recording.mass, layers),
        "deviation": in_order(recording.deviation, layers),
    }


def _mean(rows: Sequence[Any]) -> Any:
    """Element-wise mean of equally nested lists."""
    mean: Any = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    return mean
