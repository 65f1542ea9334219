"""What the answer would notice if a token's FFN output in a layer were left out: by the curvature of its likelihood.

Each token's FFN output gets a gate. Near 1, leaving out a little of token t costs  KL ~ F[t] (1 - gate[t])^2 / 2  with
F[t] = E[(d log p(answer) / d gate[t])^2], the diagonal of the Fisher information; expected over answers that the model
itself would give. The squared gradient of a sum with random signs has the expectation of the sum of squares, so one
backward pass serves all of an answer's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from vllm_redknot.evals.cases import Case
from vllm_redknot.profiler.masked import ProfiledAttention
from vllm_redknot.profiler.row_model import RowModel, rows_of
from vllm_redknot.rows.schedule import RowSchedule

DRAWS: Final = 2
"""Answers drawn for each case."""


@dataclass(frozen=True)
class RowImportance:
    """Of one layer and case, N tokens that may skip: `inputs` [N, E] of the FFN, `importance` fp32 [N] >= 0."""

    inputs: torch.Tensor
    importance: torch.Tensor


def row_importance(
    model: RowModel,
    heads: ProfiledAttention,
    case: Case,
    schedule: RowSchedule,
    layers: Sequence[int],
    seed: int,
) -> dict[int, RowImportance]:
    """Layer -> importance of its FFN rows for the answer of a case.

    Args:
        schedule: what is skipped besides, in layers behind `layers`.
        layers: at which nothing skips.
        seed: of the draws.
    """
    tokens, answer = case.prompt + case.answer[:-1], len(case.answer)
    rows = rows_of(schedule, len(case.prompt), len(tokens), model.depth)
    first = min(layers)
    state = model.run(tokens, 1, heads, rows, keep=(first,)).states[first]
    gates = {layer: torch.ones(len(tokens), device=model.device, requires_grad=True) for layer in layers}
    logits, inputs = model.run_gated(tokens, answer, heads, rows, (first, state), gates)
    logprobs = logits.log_softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    squares = [torch.zeros(len(tokens)) for _ in layers]
    for draw in range(DRAWS):
        drawn = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=generator).to(model.device)
        signs = torch.randint(0, 2, (answer,), generator=generator).to(model.device) * 2 - 1
        total = (logprobs.gather(1, drawn)[:, 0] * signs).sum()
        gradients = torch.autograd.grad(total, list(gates.values()), retain_graph=draw + 1 < DRAWS)
        for square, gradient in zip(squares, gradients, strict=True):
            square += gradient.float().cpu() ** 2 / DRAWS
    skips = rows.skips
    return {
        layer: RowImportance(inputs[layer].cpu()[skips], square[skips])
        for layer, square in zip(layers, squares, strict=True)
    }
