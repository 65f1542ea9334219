"""Which rows a layer's feed-forward network computes: one small class per rule.

A rule sees, of every token that may skip, the network's input, or the norms of its attention output and of its
residual before that is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.rows.sparse_ffn import Mass, Predictor


class NormRule(Protocol):
    """Chooses rows of one layer by norms."""

    def keep(self, attention: torch.Tensor, residual: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Which of the step's skippable rows the layer computes.

        Args:
            attention: fp32 [N], L2 norm over the width of what attention adds to the residual.
            residual: fp32 [N], L2 norm of the residual it is added to.
            lengths: rows of each request in this step, in order; they sum to N.

        Returns:
            bool [N].
        """


class RelativeNormRule:
    """|attention output| >= threshold * |residual|: the token's own state, whatever else is in the step."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def keep(self, attention: torch.Tensor, residual: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """See `NormRule`."""
        del lengths
        return attention >= self.threshold * residual


class MassRule:
    """The largest attention outputs that together hold less than `share` of a chunk's sum, one at least.

    RedKnot's Sparse FFN (`sparse_ffn.py`): ranks whose cumulative fraction is strictly below the share; a chunk of
    zeros is kept whole. A chunk is what one request has in one step, so the scheduler has a say in what is kept.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def keep(self, attention: torch.Tensor, residual: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """See `NormRule`."""
        del residual
        return torch.cat([self._keep_chunk(chunk) for chunk in torch.split(attention, list(lengths))])

    def _keep_chunk(self, attention: torch.Tensor) -> torch.Tensor:
        ordered, order = attention.sort(descending=True, stable=True)
        fraction = ordered.cumsum(0) / ordered.sum()
        largest = torch.arange(len(ordered), device=ordered.device) == 0
        # The sum of a chunk of zeros makes NaN fractions, which are not below any share.
        chosen = (fraction < self.share) | largest | ~(ordered.sum() > 0) | (self.share >= 1.0)
        kept = torch.empty_like(chosen)
        kept[order] = chosen
        return kept


class PredictorRule:
    """<weights, input> >= threshold: the token's own state, whatever else is in the step."""

    def __init__(self, weights: Sequence[float], threshold: float) -> None:
        self.threshold = threshold
        # Made while a model is loaded, where another type is torch's default.
        self._weights = torch.tensor(weights, dtype=torch.float32)

    def scores(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What is compared with the threshold: [N, E], the FFN's normalised input, to fp32 [N]."""
        if self._weights.device != hidden_states.device:
            self._weights = self._weights.to(hidden_states.device)
        return hidden_states.float() @ self._weights

    def keep(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Which rows the layer computes: bool [N]."""
        return self.scores(hidden_states) >= self.threshold


FfnRule = NormRule | PredictorRule


def ffn_rule(schedule: RowSchedule, layer: int) -> FfnRule | None:
    """The rule of a layer before the late ones, None if it computes all rows."""
    sparse = schedule.sparse_ffn
    if sparse is None or schedule.skips_ffn(layer):
        return None
    if isinstance(sparse, Mass):
        share = sparse.share_of(layer)
        return None if share is None else MassRule(share)
    if isinstance(sparse, Predictor):
        probe = sparse.probes.get(str(layer))
        return None if probe is None else PredictorRule(probe.values(), probe.threshold)
    threshold = sparse.thresholds.get(str(layer))
    return None if threshold is None else RelativeNormRule(threshold)
