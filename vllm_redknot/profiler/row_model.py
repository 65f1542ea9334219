"""A hooked model in which prompt tokens skip rows, and which can go on from the states of an earlier pass.

Like the engine, it runs late attention and FFNs on the kept rows alone; unlike it, it sees a whole prompt and the
answer in one pass. Schedules that differ in late layers only share the states before those: a pass begins at any layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vllm_redknot.profiler.errors import ProfilerError
from vllm_redknot.profiler.hooked import AttentionCall, HookedModel
from vllm_redknot.profiler.masked import ProfiledAttention
from vllm_redknot.rows.rules import PredictorRule, ffn_rule
from vllm_redknot.rows.schedule import RowSchedule

Forward = Callable[..., Any]


@dataclass(frozen=True)
class FfnInput:
    """What a choice of FFN rows may look at; N = tokens that may skip.

    Attributes:
        added: fp32 [N], norm of what attention adds to the residual.
        residual: fp32 [N], norm of the residual it is added to.
        hidden: [N, E], what the FFN is given: normalised.
        output_norms: computes the FFN of those tokens after all: fp32 [N], norms of its output. For comparison only.
    """

    added: torch.Tensor
    residual: torch.Tensor
    hidden: torch.Tensor
    output_norms: Callable[[], torch.Tensor]


FfnChoice = Callable[[int, FfnInput], torch.Tensor | None]
"""Layer and state to bool [N], the rows the FFN computes after all; None: every row."""


@dataclass(frozen=True)
class Rows:
    """What the tokens of one pass skip: `skips` is bool [T], the layers as in `RowSchedule`."""

    skips: torch.Tensor
    ffn_from: int
    attention_from: int
    choose: FfnChoice | None = None


def rows_of(schedule: RowSchedule, prompt_tokens: int, tokens: int, depth: int) -> Rows:
    """The rows of a pass over `tokens` tokens, of which the first `prompt_tokens` are the prompt."""
    position = torch.arange(tokens)
    low, high = schedule.skippable(prompt_tokens)

    def choose(layer: int, state: FfnInput) -> torch.Tensor | None:
        rule = ffn_rule(schedule, layer)
        if isinstance(rule, PredictorRule):
            return rule.keep(state.hidden)
        return rule.keep(state.added, state.residual, [len(state.added)]) if rule else None

    return Rows(
        (position >= low) & (position < high),
        depth if schedule.ffn_from is None else schedule.ffn_from,
        depth if schedule.attention_from is None else schedule.attention_from,
        None if schedule.sparse_ffn is None else choose,
    )


@dataclass
class _Pass:
    """The pass that is running."""

    heads: ProfiledAttention
    rows: Rows | None
    begin: int
    state: torch.Tensor | None
    keep: Collection[int]
    gates: Mapping[int, torch.Tensor]
    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    states: dict[int, torch.Tensor] = field(default_factory=dict)
    computed: dict[int, float] = field(default_factory=dict)
    residual: torch.Tensor | None = None
    added: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.rows is not None:
            self.skipping = self.rows.skips.nonzero()[:, 0]
            self.kept = (~self.rows.skips).nonzero()[:, 0]


@dataclass(frozen=True)
class PassResult:
    """Of one pass: logits fp32 [last, vocabulary]; states [1, T, E] before the layers asked for; per layer of a choice
    the share of rows computed among those that may skip."""

    logits: torch.Tensor
    states: dict[int, torch.Tensor]
    computed: dict[int, float]


class RowModel:
    """Takes over a hooked model's layers; outside `run` they are the model's own.

    Raises:
        ProfilerError: A layer is not one attention and one dense FFN.
    """

    def __init__(self, model: HookedModel) -> None:
        self._model = model
        self.depth = len(model.layers)
        self.device = model.device
        self._now: _Pass | None = None
        modules = dict(model.model.named_modules())
        if sorted(model.layers) != list(range(self.depth)):
            raise ProfilerError(
                f"layers {sorted(model.layers)} have attention: row skipping needs it in every layer"
            )
        paths = {id(module): path for path, module in modules.items()}
        for index, attention in model.layers.items():
            self._install(index, paths[id(attention)].rpartition(".")[0], modules, attention)

    def run(
        self,
        tokens: tuple[int, ...],
        last: int,
        heads: ProfiledAttention,
        rows: Rows | None = None,
        begin: tuple[int, torch.Tensor] | None = None,
        keep: Collection[int] = (),
    ) -> PassResult:
        """One pass.

        Args:
            tokens: of the prompt and what follows it.
            last: how many last positions give logits.
            rows: what is skipped; None: nothing.
            begin: a layer, and the state before it that an earlier pass over the same tokens kept. The layers before it
                do not run.
            keep: layers whose states are kept.
        """
        with torch.inference_mode():
            logits, now = self._run(tokens, last, heads, rows, begin, keep, {})
        return PassResult(logits, now.states, now.computed)

    def run_gated(
        self,
        tokens: tuple[int, ...],
        last: int,
        heads: ProfiledAttention,
        rows: Rows,
        begin: tuple[int, torch.Tensor],
        gates: Mapping[int, torch.Tensor],
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """A pass with gradients, for layers at which nothing skips.

        Args:
            tokens, last, heads, rows, begin: as in `run`.
            gates: layer -> [T], what each token's FFN output is multiplied by.

        Returns:
            Logits fp32 [last, vocabulary], and per layer of `gates` what its FFN was given, [T, E].
        """
        state = begin[0], begin[1].clone()  # one that may be saved for a backward pass
        logits, now = self._run(tokens, last, heads, rows, state, (), gates)
        return logits, now.inputs

    def _run(
        self,
        tokens: tuple[int, ...],
        last: int,
        heads: ProfiledAttention,
        rows: Rows | None,
        begin: tuple[int, torch.Tensor] | None,
        keep: Collection[int],
        gates: Mapping[int, torch.Tensor],
    ) -> tuple[torch.Tensor, _Pass]:
        if rows is not None:
            rows = Rows(rows.skips.to(self.device), rows.ffn_from, rows.attention_from, rows.choose)
        layer, state = begin or (0, None)
        self._now = now = _Pass(heads, rows, layer, state, keep, gates)
        self._model.attention = self._attend
        try:
            return self._model.logits(tokens, last), now
        finally:
            self._now = None

    def _install(self, index: int, path: str, modules: dict[str, Any], attention: Any) -> None:
        layer = modules[path]
        ffn = _feed_forward(path, layer, attention)
        layer.forward = self._layer_forward(index, layer.forward)
        for name in ("q_proj", "o_proj"):
            if hasattr(attention, name):
                projection = getattr(attention, name)
                projection.forward = self._projection_forward(index, projection.forward)
        ffn.forward = self._ffn_forward(index, ffn.forward)
        # With a norm on both sides, what is added to the residual is what the second one gives.
        adds = layer.post_attention_layernorm if hasattr(layer, "pre_feedforward_layernorm") else attention
        adds.register_forward_hook(self._note_added)

    def _layer_forward(self, index: int, forward: Forward) -> Forward:
        def run(hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            now = self._now
            if now is not None:
                if index < now.begin:
                    return hidden_states
                if index == now.begin and now.state is not None:
                    hidden_states = now.state
                if index in now.keep:
                    now.states[index] = hidden_states
                if now.rows is not None and now.rows.choose is not None:
                    now.residual = _norms(hidden_states[0])
            result = forward(hidden_states, *arguments, **named)
            if not isinstance(result, torch.Tensor):
                raise ProfilerError(f"layer {index} returns a {type(result).__name__}, not its hidden states")
            return result

        return run

    def _note_added(self, module: Any, arguments: Any, output: Any) -> None:
        del module, arguments
        now = self._now
        if now is not None and now.rows is not None and now.rows.choose is not None:
            now.added = _norms((output[0] if isinstance(output, tuple) else output)[0])

    def _attend(self, call: AttentionCall) -> torch.Tensor:
        now = self._now
        assert now is not None, "attention is ours while a pass runs"
        if self._late(now, call.layer):
            return now.heads.of_rows(call, now.kept)
        return now.heads(call)

    @staticmethod
    def _late(now: _Pass | None, index: int) -> bool:
        return now is not None and now.rows is not None and index >= now.rows.attention_from

    def _projection_forward(self, index: int, forward: Forward) -> Forward:
        """Queries and outputs of kept rows alone in late layers; also no bias for the others."""

        def run(hidden_states: torch.Tensor) -> Any:
            now = self._now
            if now is None or not self._late(now, index):
                return forward(hidden_states)
            return _on_rows(forward, hidden_states, now.kept)

        return run

    def _ffn_forward(self, index: int, forward: Forward) -> Forward:
        def run(hidden_states: torch.Tensor) -> Any:
            now = self._now
            if now is None or now.rows is None:
                return forward(hidden_states)
            if index in now.gates:
                now.inputs[index] = hidden_states[0].detach()
                return forward(hidden_states) * now.gates[index][:, None].to(hidden_states.dtype)
            if index >= now.rows.ffn_from:
                return _on_rows(forward, hidden_states, now.kept)
            if now.rows.choose is None:
                return forward(hidden_states)
            assert now.added is not None, "attention runs before the FFN"
            assert now.residual is not None, "the layer runs before its FFN"
            state = FfnInput(
                now.added[now.skipping],
                now.residual[now.skipping],
                hidden_states[0, now.skipping],
                lambda: _norms(forward(hidden_states[:, now.skipping])[0]),
            )
            chosen = now.rows.choose(index, state)
            if chosen is None:
                return forward(hidden_states)
            now.computed[index] = float(chosen.float().mean()) if len(chosen) else 1.0
            computed = torch.cat([now.kept, now.skipping[chosen]]).sort().values
            return _on_rows(forward, hidden_states, computed)

        return run


def _feed_forward(path: str, layer: Any, attention: Any) -> Any:
    found = [child for child in layer.children() if child is not attention and _computes(child)]
    if len(found) != 1 or hasattr(found[0], "experts"):
        kinds = ", ".join(type(child).__name__ for child in found) or "none"
        raise ProfilerError(
            f"{path}: row skipping is calibrated for layers with one dense FFN; found: {kinds}"
        )
    return found[0]


def _computes(module: nn.Module) -> bool:
    """Norms and rotary embeddings hold no linear layer."""
    return hasattr(module, "experts") or any(isinstance(part, nn.Linear) for part in module.modules())


def _on_rows(forward: Forward, hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[1, T, E] to [1, T, *], zeros but for `rows`."""
    if rows.shape[0] == hidden_states.shape[1]:
        whole: torch.Tensor = forward(hidden_states)
        return whole
    packed: torch.Tensor = forward(hidden_states[:, rows])
    result = packed.new_zeros(1, hidden_states.shape[1], packed.shape[-1])
    return result.index_copy_(1, rows, packed)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
