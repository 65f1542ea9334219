"""What replaces the forward of a decoder layer's attention and feed-forward network where tokens skip them.

A module keeps its class, its weights and its place in the model; only `forward` of the instance changes. In a step
without a plan (decode, short prompts, profiling) that is one look-up and the module's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.distributed.communication_op import tensor_model_parallel_all_reduce

from vllm_redknot.kernels.sparse_rows import pack_rows, unpack_rows
from vllm_redknot.rows.counters import FFN, RowCounters
from vllm_redknot.rows.plan import RowPass, RowPlan
from vllm_redknot.rows.projection import KeyValueProjection
from vllm_redknot.rows.rules import FfnRule, PredictorRule
from vllm_redknot.rows.skipping import plan_of
from vllm_redknot.rows.structure import DecoderLayer, RowStructureError

Forward = Callable[..., Any]


class KeptAttention:
    """Attention of a layer that only the kept rows of a step run; the others add nothing to the residual.

    The module's own forward runs on the kept rows, which see the keys of all: those of the other rows must be in the
    pages by then.
    """

    def __init__(self, layer: DecoderLayer) -> None:
        self._name, self._impl = layer.name, layer.impl
        self._attention: Forward = layer.attention.forward
        layer.attention.forward = self.forward

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor, **others: Any) -> torch.Tensor:
        """What attention adds to the residual.

        Args:
            positions: [T], or [3, T] for multimodal RoPE.
            hidden_states: [T, E], normalised.
            others: further arguments of the module, handed through; none may have a row per token.

        Returns:
            [T, E]; zeros for skipping rows.
        """
        plan = plan_of(self._name)
        if plan is None:
            output: torch.Tensor = self._attention(positions=positions, hidden_states=hidden_states, **others)
            return output
        self._before_kept(plan, positions, hidden_states, others)
        if not plan.num_kept:
            return torch.zeros_like(hidden_states)
        with self._row_pass(RowPass(plan.kept_step, attends=True)):
            packed = self._run(positions, hidden_states, plan.kept, others)
        return unpack_rows(packed, plan.kept, hidden_states.shape[0])

    def _before_kept(
        self, plan: RowPlan, positions: torch.Tensor, hidden_states: torch.Tensor, others: dict[str, Any]
    ) -> None:
        """What is done for the skipping rows."""

    def _run(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, rows: torch.Tensor, others: dict[str, Any]
    ) -> torch.Tensor:
        # A chunk in the middle of a long prompt is all of one kind.
        if rows.shape[0] != hidden_states.shape[0]:
            positions, hidden_states = positions.index_select(-1, rows), pack_rows(hidden_states, rows)
        packed: torch.Tensor = self._attention(positions=positions, hidden_states=hidden_states, **others)
        return packed

    @contextmanager
    def _row_pass(self, row_pass: RowPass) -> Iterator[None]:
        self._impl.row_pass = row_pass
        try:
            yield
        finally:
            self._impl.row_pass = None


class LateAttention(KeptAttention):
    """Attention of a late layer: skipping tokens only project and store K and V, and add nothing to the residual.

    The module's own forward runs twice, on the skipping rows with the query, the attention kernel and the output
    projection left out, then on the kept rows, which see the keys of all.
    """

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__(layer)
        self._project = KeyValueProjection(layer.qkv)
        self._width = layer.output.output_size
        self._returns_bias = layer.output.return_bias
        self._qkv: Forward = layer.qkv.forward
        self._output: Forward = layer.output.forward
        layer.qkv.forward = self._forward_qkv
        layer.output.forward = self._forward_output

    def _before_kept(
        self, plan: RowPlan, positions: torch.Tensor, hidden_states: torch.Tensor, others: dict[str, Any]
    ) -> None:
        with self._row_pass(RowPass(plan.skipping_step, attends=False)):
            self._run(positions, hidden_states, plan.skipping, others)

    @property
    def _stores_only(self) -> bool:
        row_pass: RowPass | None = self._impl.row_pass
        return row_pass is not None and not row_pass.attends

    def _forward_qkv(self, hidden_states: torch.Tensor) -> Any:
        if not (self._stores_only and self._project.is_narrow):
            return self._qkv(hidden_states)
        return (self._project(hidden_states), None) if self._returns_bias else self._project(hidden_states)

    def _forward_output(self, hidden_states: torch.Tensor) -> Any:
        if not self._stores_only:
            return self._output(hidden_states)
        # Nobody reads it: a view of one zero.
        nothing = hidden_states.new_zeros(1, 1).expand(hidden_states.shape[0], self._width)
        return (nothing, None) if self._returns_bias else nothing


class SkippingFfn:
    """The feed-forward network of a layer in which tokens skip it; in a Mixture of Experts, its routed experts."""

    def __init__(self, layer: DecoderLayer, rule: FfnRule | None, counters: RowCounters) -> None:
        """
        Args:
            layer: where it is.
            rule: which of the rows that may skip are computed after all; None: none of them.
            counters: told what the rule chose.
        """
        self._name, self._index, self._rule, self._counters = layer.name, layer.index, rule, counters
        self._ffn: Forward = layer.ffn.forward
        self._shared = layer.shared_expert
        self._by_norms = None if isinstance(rule, PredictorRule) else rule
        self._chosen: torch.Tensor | None = None
        layer.ffn.forward = self.forward
        if self._by_norms is not None:
            norm = layer.ffn_norm
            if norm is None:
                raise RowStructureError(f"{layer.name}: sparse_ffn needs a norm between attention and FFN")
            self._norm: Forward = norm.forward
            norm.forward = self._forward_norm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the network adds to the residual.

        Args:
            hidden_states: [T, E], normalised.

        Returns:
            [T, E]; zeros, or the shared experts' output, for skipping rows.
        """
        plan = plan_of(self._name)
        if plan is None:
            output: torch.Tensor = self._ffn(hidden_states)
            return output
        computed, skipped = self._split(plan, hidden_states)
        if computed.shape[0]:
            result = unpack_rows(
                self._ffn(pack_rows(hidden_states, computed)), computed, hidden_states.shape[0]
            )
        else:
            result = torch.zeros_like(hidden_states)
        if self._shared is not None and skipped.shape[0]:
            result.index_copy_(0, skipped, self._share(pack_rows(hidden_states, skipped)))
        return result

    def _split(self, plan: RowPlan, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows that are computed, and rows that are not."""
        if self._rule is None:
            return plan.kept, plan.skipping
        chosen = self._choose(plan, hidden_states)
        extra = plan.skipping[chosen]
        skipped = plan.num_skipping - extra.shape[0]
        self._counters.add(FFN, self._index, plan.num_kept + extra.shape[0], skipped)
        return torch.cat([plan.kept, extra]).sort().values, plan.skipping[~chosen]

    def _choose(self, plan: RowPlan, hidden_states: torch.Tensor) -> torch.Tensor:
        if isinstance(self._rule, PredictorRule):
            return self._rule.keep(hidden_states)[plan.skipping]
        chosen, self._chosen = self._chosen, None
        assert chosen is not None, "the norm runs before the network"
        return chosen

    def _share(self, hidden_states: torch.Tensor) -> torch.Tensor:
        assert self._shared is not None
        output: torch.Tensor = self._shared(hidden_states)
        # The block sums shared and routed experts before it reduces over ranks.
        return output if self._shared.down_proj.reduce_results else tensor_model_parallel_all_reduce(output)

    def _forward_norm(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            raise RowStructureError(f"{self._name}: sparse_ffn needs a norm that is given the residual")
        plan = plan_of(self._name)
        if plan is not None:
            assert self._by_norms is not None
            added, before = (_norms(rows)[plan.skipping] for rows in (hidden_states, residual))
            self._chosen = self._by_norms.keep(added, before, plan.lengths)
        return self._norm(hidden_states, residual)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
