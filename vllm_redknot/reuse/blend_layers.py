"""Blend in the layers of a model: from an early layer on, only chosen rows of moved spans are computed.

Layers before it run all rows. The early layer projects K and V of all rows and compares them with the stored ones; what
follows, in it and in the layers behind it, runs on the chosen rows and on those of no span.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from vllm_redknot.kernels.sparse_rows import pack_rows, unpack_rows
from vllm_redknot.reuse.blend_step import BlendStep
from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.rows.counters import RowCounters
from vllm_redknot.rows.layers import KeptAttention, SkippingFfn
from vllm_redknot.rows.skipping import plan_of
from vllm_redknot.rows.structure import DecoderLayer

EARLY: Final = 1
"""Which attention layer chooses. The first one's K and V depend on a token and its position alone."""


class EarlyAttention:
    """Attention of the layer that chooses."""

    def __init__(self, layer: DecoderLayer) -> None:
        self._name = layer.name
        self._width = layer.output.output_size
        self._returns_bias = layer.output.return_bias
        self._attend: Callable[..., torch.Tensor] = layer.impl.forward
        self._output: Callable[..., Any] = layer.output.forward
        self._expected: BlendStep | None = None
        layer.impl.forward = self.attend
        layer.output.forward = self._forward_output

    def expect(self, step: BlendStep | None) -> None:
        """Tell what the step blends that is about to begin; None if nothing."""
        self._expected = step

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        **others: Any,
    ) -> torch.Tensor:
        """`RedknotImpl.forward`; rows that are not chosen are not stored, and their output is zero."""
        blend, self._expected = self._expected, None
        plan = None
        if blend is not None and blend.step is attn_metadata:
            plan = attn_metadata.rows = blend.choose(key, value)
        if plan is None:
            return self._attend(layer, query, key, value, kv_cache, attn_metadata, output, **others)
        output.zero_()
        if plan.num_kept:
            rows = [tensor.index_select(0, plan.kept) for tensor in (query, key, value)]
            packed = torch.empty_like(output[: plan.num_kept])
            self._attend(layer, *rows, kv_cache, plan.kept_step, packed, **others)
            output.index_copy_(0, plan.kept, packed)
        return output

    def _forward_output(self, hidden_states: torch.Tensor) -> Any:
        plan = plan_of(self._name)
        if plan is None:
            return self._output(hidden_states)
        rows = hidden_states.shape[0]
        if not plan.num_kept:
            result = hidden_states.new_zeros(rows, self._width)
            return (result, None) if self._returns_bias else result
        result = self._output(pack_rows(hidden_states, plan.kept))
        if self._returns_bias:
            return unpack_rows(result[0], plan.kept, rows), result[1]
        return unpack_rows(result, plan.kept, rows)


def install_blend(layers: Sequence[DecoderLayer]) -> EarlyAttention:
    """Change a model's decoder layers, in their order.

    Raises:
        ReuseError: There is no layer behind the first, or the model blends already.
    """
    if len(layers) <= EARLY:
        raise ReuseError(f"blend needs {EARLY + 1} attention layers or more, and the model has {len(layers)}")
    if "forward" in vars(layers[EARLY].impl):
        raise ReuseError(f"{layers[EARLY].name} has been changed for blend already")
    early = EarlyAttention(layers[EARLY])
    counters = RowCounters(None)
    for layer in layers[EARLY:]:
        # Nobody reads what shared experts would add to a skipping row.
        SkippingFfn(replace(layer, shared_expert=None), None, counters)
    for layer in layers[EARLY + 1 :]:
        KeptAttention(layer)
    return early
