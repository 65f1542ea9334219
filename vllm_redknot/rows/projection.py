"""K and V of a fused QKV projection alone, for tokens whose query nobody needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.linear import QKVParallelLinear, UnquantizedLinearMethod
from vllm.platforms import current_platform


class KeyValueMethod(UnquantizedLinearMethod):
    """vLLM's unquantised linear method, which can also project K and V only.

    On a CPU vLLM packs a layer's weight and drops it, so the rows of K and V are packed a second time; on a GPU they
    are a slice of the weight.
    """

    _query_rows = 0
    _packed: Any | None = None

    def process_weights_after_loading(self, layer: Any) -> None:
        """Pack, on a CPU; vLLM calls this after each loading of weights."""
        if current_platform.is_cpu() and not getattr(layer, "_cpu_skip_gemm_dispatch", False):
            part: Any = nn.Module()
            part.weight = nn.Parameter(layer.weight[self._query_rows :].detach().clone(), requires_grad=False)
            bias = layer.bias
            part.bias = None if bias is None else _frozen(bias[self._query_rows :].detach().clone())
            super().process_weights_after_loading(part)
            self._packed = part
        super().process_weights_after_loading(layer)

    def project_key_value(self, layer: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """Rows of K and V, side by side.

        Args:
            layer: the projection this is the method of.
            hidden_states: [N, E].

        Returns:
            [N, (number of KV heads) * (K and V sizes)].
        """
        if self._packed is not None:
            return self.apply(self._packed, hidden_states, self._packed.bias)
        bias = None if layer.bias is None else layer.bias[self._query_rows :]
        return self._gemm_impl(layer, hidden_states, layer.weight[self._query_rows :], bias)


def _extended(method: UnquantizedLinearMethod, query_rows: int) -> KeyValueMethod:
    """The same method, made for the same device and weights, that also projects the rows after the queries'."""
    extended = KeyValueMethod.__new__(KeyValueMethod)
    extended.__dict__.update(vars(method))
    extended._query_rows = query_rows
    return extended


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


class KeyValueProjection:
    """A fused QKV projection that leaves queries out when told to: they are zeros then."""

    def __init__(self, qkv: QKVParallelLinear) -> None:
        self._qkv = qkv
        self._query_columns = qkv.num_heads * qkv.head_size
        self._columns = sum(qkv.output_partition_sizes)
        self._method: KeyValueMethod | None = None
        if type(qkv.quant_method) is UnquantizedLinearMethod and not qkv.skip_bias_add:
            # Before weights are loaded: it must see them before they are packed.
            self._method = _extended(qkv.quant_method, self._query_columns)
            qkv.quant_method = self._method

    @property
    def is_narrow(self) -> bool:
        """Whether queries are really left out; a quantised projection computes them all the same."""
        return self._method is not None

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[N, E] to [N, query and key and value columns]."""
        assert self._method is not None, "ask is_narrow first"
        result = hidden_states.new_empty(hidden_states.shape[0], self._columns)
        result[:, : self._query_columns] = 0
        result[:, self._query_columns :] = self._method.project_key_value(self._qkv, hidden_states)
        return result
