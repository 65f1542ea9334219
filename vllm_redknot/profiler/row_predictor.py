"""Predictors of the FFN rows that matter: per layer one linear score of the FFN's own input.

Which tokens will be asked for is not known when they are computed, but it shows: nearly all of the importance for an
answer lies in few tokens (`row_importance`), and they look alike. A logistic regression tells the most important tenth
from the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from vllm_redknot.evals.cases import Case
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.journal import Journal
from vllm_redknot.profiler.masked import ProfiledAttention
from vllm_redknot.profiler.row_importance import RowImportance, row_importance
from vllm_redknot.profiler.row_model import RowModel
from vllm_redknot.rows.rules import PredictorRule
from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.rows.sparse_ffn import Probe

IMPORTANT: Final = 0.1
"""Share of a case's tokens that count as important in a layer."""
SKIPPED_SHARES: Final = (0.5, 0.75, 0.9)
"""Thresholds are offered that skip these shares of the tokens."""
REACH: Final = 0.25
"""Predictors are fitted for this share of the model's layers, those before the late ones: before them all matters."""
PENALTY: Final = 1e-3
"""Of the squared weights of normalised inputs."""
STEPS: Final = 60
LEAST_SPREAD: Final = 1e-5
"""Of a value that counts as varying: standard deviation over largest magnitude."""

Probes = Mapping[int, Mapping[float, Probe]]
"""Layer -> share of its tokens that skip -> probe."""


def fit_probes(
    model: RowModel,
    heads: HeadProfile,
    cases: Sequence[Case],
    schedule: RowSchedule,
    journal: Journal,
    advance: Callable[[], None] = lambda: None,
) -> Probes:
    """Probes for the layers before a schedule's late ones. Meanwhile it holds those layers' inputs of all cases.

    Args:
        schedule: late layers, no `sparse_ffn`.
        cases: others than those that judge.
        advance: called after each case.
    """
    late = model.depth if schedule.ffn_from is None else schedule.ffn_from
    layers = range(late - min(late, max(1, round(REACH * model.depth))), late)
    key = f"probes {schedule.digest()} {heads.fingerprint()} {[case.fingerprint() for case in cases]}"
    found = journal.get(key)
    if found is None:
        attention = ProfiledAttention(heads)
        measured = []
        for seed, case in enumerate(cases):
            measured.append(row_importance(model, attention, case, schedule, layers, seed) if layers else {})
            advance()
        found = [[layer, _offered([of_case[layer] for of_case in measured])] for layer in layers]
        journal.add(key, found)
    return {
        layer: {share: Probe.model_validate(probe) for share, probe in offered} for layer, offered in found
    }


def _offered(measured: Sequence[RowImportance]) -> list[tuple[float, dict[str, Any]]]:
    inputs = torch.cat([case.inputs for case in measured]).float()
    important = torch.cat([_important(case.importance) for case in measured])
    weights = fit(inputs, important).half().float().tolist()
    scores = PredictorRule(weights, 0.0).scores(inputs)
    return [
        (share, Probe.of(weights, round(float(scores.quantile(share)), 4)).model_dump())
        for share in SKIPPED_SHARES
    ]


def _important(importance: torch.Tensor) -> torch.Tensor:
    return (importance >= importance.quantile(1 - IMPORTANT)) & (importance > 0)


def fit(inputs: torch.Tensor, important: torch.Tensor) -> torch.Tensor:
    """Weights, fp32 [E], of a logistic regression.

    Args:
        inputs: fp32 [N, E].
        important: bool [N].
    """
    mean, spread = inputs.mean(0), inputs.std(0)
    # A value that is always the same tells nothing; its rounding errors must not.
    varies = spread > LEAST_SPREAD * inputs.abs().amax(0)
    spread = torch.where(varies, spread, torch.inf)
    normalised, wanted = (inputs - mean) / spread, important.float()
    weights = torch.zeros(inputs.shape[1], requires_grad=True)
    offset = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, offset], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = binary_cross_entropy_with_logits(normalised @ weights + offset, wanted)
        value = value + PENALTY * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weights.detach() / spread
