"""An independent model of reuse: transformers with explicit masks and positions. It shares no code with the engine.

A document is encoded with its queries seeing only itself, its keys rotated for its true place. In the prompt, tokens
that are not recomputed take these keys and values in every layer; all others see what is before them.

Where tokens are chosen by how much they deviate, every token runs every layer here: what is not chosen has its keys and
values replaced from the second layer on, so that nobody reads what it has become.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from tests.engine.oracle import State, masked_attention

NAME = "explicit_reuse"
Clean = list[tuple[int, int, int]]
"""Per document: its first token in the prompt, the first that is not recomputed, its end."""


@dataclass
class Blended:
    """Neighbouring tokens of a document of which a share is recomputed."""

    document: tuple[int, int]
    begin: int
    end: int
    share: float
    keys: list[torch.Tensor] = field(default_factory=list)  # per layer [1, H, n, D]
    values: list[torch.Tensor] = field(default_factory=list)
    old: torch.Tensor | None = None  # those that are not chosen

    def replace(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Overwrite what is not chosen; the second layer chooses."""
        if layer == 0:
            return
        old_key, old_value = self.keys[layer], self.values[layer]
        if layer == 1:
            moved = key[:, :, self.begin : self.end] - old_key, value[:, :, self.begin : self.end] - old_value
            deviation = moved[0].square().sum(dim=(0, 1, 3)) + moved[1].square().sum(dim=(0, 1, 3))
            count = self.end - self.begin
            self.old = deviation.argsort()[: count - round(self.share * count)]
        assert self.old is not None
        key[:, :, self.begin + self.old] = old_key[:, :, self.old]
        value[:, :, self.begin + self.old] = old_value[:, :, self.old]


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' contract: query [1, Hq, T, D], key and value [1, H, T, D]."""
    del mask, kwargs
    for begin, end, old_key, old_value in module.redknot_stored:
        key[:, :, begin:end], value[:, :, begin:end] = old_key, old_value
    for blended in module.redknot_blended:
        blended.replace(module.layer_idx, key, value)
    module.redknot_seen = key.clone(), value.clone()
    return masked_attention(query, key, value, module.redknot_heads, scaling), None


class ReuseModel:
    """A transformers model that answers a prompt some of whose tokens have their KV from elsewhere."""

    def __init__(self, folder: Path, heads: State) -> None:
        AttentionInterface.register(NAME, _attention)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=NAME
        ).eval()
        self._layers = [layer.self_attn for layer in self.model.model.layers]
        for layer, limits in zip(self._layers, heads, strict=True):
            layer.redknot_heads, layer.redknot_blended = limits, []

    @torch.inference_mode()
    def logprobs(
        self,
        prompt: Sequence[int],
        answer: Sequence[int],
        documents: Clean,
        blended: Sequence[Blended] = (),
    ) -> list[float]:
        """Logprob of each token of an answer, given the prompt and the answer before it."""
        stored: list[list[tuple[int, int, torch.Tensor, torch.Tensor]]] = [[] for _ in self._layers]
        for begin, clean, end in documents:
            self._run(prompt[begin:end], begin, [[] for _ in self._layers])
            for layer, found in zip(self._layers, stored, strict=True):
                key, value = layer.redknot_seen
                found.append((clean, end, key[:, :, clean - begin :], value[:, :, clean - begin :]))
        for part in blended:
            first, last = part.document
            self._run(prompt[first:last], first, [[] for _ in self._layers])
            inside = slice(part.begin - first, part.end - first)
            part.keys = [layer.redknot_seen[0][:, :, inside] for layer in self._layers]
            part.values = [layer.redknot_seen[1][:, :, inside] for layer in self._layers]
        for layer in self._layers:
            layer.redknot_blended = blended
        logits = self._run([*prompt, *answer], 0, stored)[len(prompt) - 1 : -1]
        for layer in self._layers:
            layer.redknot_blended = []
        chosen = logits.float().log_softmax(-1).gather(1, torch.tensor(list(answer))[:, None])
        values: list[float] = chosen[:, 0].tolist()
        return values

    def _run(self, tokens: Sequence[int], position: int, stored: list[Any]) -> torch.Tensor:
        """[T, vocabulary] logits."""
        for layer, found in zip(self._layers, stored, strict=True):
            layer.redknot_stored = found
        places = torch.arange(position, position + len(tokens))[None]
        logits: torch.Tensor = self.model(
            torch.tensor([list(tokens)]), position_ids=places, use_cache=False
        ).logits[0]
        return logits
