"""An independent model of reuse: transformers with explicit masks and positions. It shares no code with the engine.

A document is encoded with its queries seeing only itself, its keys rotated for its true place. In the prompt, tokens
that are not recomputed take these keys and values in every layer; all others see what is before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from tests.engine.oracle import State, masked_attention

NAME = "explicit_reuse"
Clean = list[tuple[int, int, int]]
"""Per document: its first token in the prompt, the first that is not recomputed, its end."""


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
            layer.redknot_heads = limits

    @torch.inference_mode()
    def logprobs(self, prompt: Sequence[int], answer: Sequence[int], documents: Clean) -> list[float]:
        """Logprob of each token of an answer, given the prompt and the answer before it."""
        stored: list[list[tuple[int, int, torch.Tensor, torch.Tensor]]] = [[] for _ in self._layers]
        for begin, clean, end in documents:
            self._run(prompt[begin:end], begin, [[] for _ in self._layers])
            for layer, found in zip(self._layers, stored, strict=True):
                key, value = layer.redknot_seen
                found.append((clean, end, key[:, :, clean - begin :], value[:, :, clean - begin :]))
        logits = self._run([*prompt, *answer], 0, stored)[len(prompt) - 1 : -1]
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
