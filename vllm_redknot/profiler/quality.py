"""How well a model answers cases with some attention in place of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from vllm_redknot.evals.cases import Case
from vllm_redknot.profiler.hooked import HookedModel, LayerAttention


@dataclass(frozen=True)
class Answer:
    """Of one case: mean negative log likelihood of the right answer, and whether greedy decoding would give it."""

    task: str
    length: int
    nll: float
    found: bool


@torch.inference_mode()
def answers(model: HookedModel, attention: LayerAttention, cases: Iterable[Case]) -> Iterator[Answer]:
    """One pass a case: greedy decoding gives the answer iff each of its tokens is the likeliest in its place."""
    model.attention = attention
    for case in cases:
        logits = model.logits(case.prompt + case.answer[:-1], len(case.answer))
        targets = torch.tensor(case.answer, device=logits.device)
        nll = float(torch.nn.functional.cross_entropy(logits, targets))
        yield Answer(case.task, len(case.prompt), nll, bool((logits.argmax(-1) == targets).all()))
