"""Gates between windows: what the answer's likelihood would lose if a KV head saw less far.

A head's output is  o = o[w0] + sum_k gate[k] (o[w(k+1)] - o[w(k)])  over rising windows w0 < w1 < ... < everything.
All gates 0: every head has the smallest window; all gates 1: the dense model. Integrating d loss / d gate along the
straight line between the two (integrated gradients, Sundararajan et al. 2017, arXiv:1703.01365) shares the whole
difference in loss out over heads and windows, interactions included. On that line all gates are equal, so the forward
pass needs the smallest window and the dense attention alone; the windows between enter when gradients have come back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_redknot.profiler.hooked import AttentionCall, HookedModel
from vllm_redknot.profiler.windowed import attend


class GatedAttention:
    """Attention with all gates at `at`; a backward pass leaves d loss / d gate in `gradients`."""

    def __init__(self, windows: Sequence[int], sink: int) -> None:
        """`windows` rise; the last step, to everything, is implied."""
        self._windows = tuple(windows)
        self._sink = sink
        self.at = 1.0
        self.gradients: dict[int, list[list[float]]] = {}

    def __call__(self, call: AttentionCall) -> torch.Tensor:
        near = self._within(self._windows[0], call, call.query, call.key, call.value)
        full = attend(call.query, call.key, call.value, None, 0, call.scaling)
        mixed = torch.lerp(near, full, self.at)
        if not mixed.requires_grad:
            # The first layer: nothing before it needs a gradient, but its own output does.
            mixed = mixed.detach().requires_grad_()
        ends = near.detach(), full.detach()
        mixed.register_hook(lambda gradient: self._note(call, *ends, gradient))
        return mixed

    def _within(
        self, window: int, call: AttentionCall, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        # A value is a sum over all positions: what rounding adds to single scores averages out.
        return attend(query, key, value, window, self._sink, call.scaling, rounded=True)

    @torch.no_grad()
    def _note(
        self, call: AttentionCall, near: torch.Tensor, full: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        query, key, value = call.query.detach(), call.key.detach(), call.value.detach()
        between = [self._within(window, call, query, key, value) for window in self._windows[1:]]
        # d loss / d gate[k] = <d loss / d o, o[w(k+1)] - o[w(k)]>, summed over positions and the group's query heads.
        along = [(gradient * output).sum((1, 2), dtype=torch.float32) for output in (near, *between, full)]
        steps = torch.stack(along, dim=1).diff(dim=1)
        self.gradients[call.layer] = steps.unflatten(0, (key.shape[0], -1)).sum(1).tolist()


def attribution(
    model: HookedModel, gated: GatedAttention, prompt: tuple[int, ...], answer: tuple[int, ...], at: float
) -> dict[int, list[list[float]]]:
    """-d loss / d gate where all gates are `at`: layer -> [H][steps]. The loss is the answer's mean NLL."""
    gated.at = at
    gated.gradients = {}
    model.attention = gated
    logits = model.logits(prompt + answer[:-1], len(answer))
    torch.nn.functional.cross_entropy(logits, torch.tensor(answer, device=logits.device)).backward()
    return {layer: [[-value for value in row] for row in rows] for layer, rows in gated.gradients.items()}
