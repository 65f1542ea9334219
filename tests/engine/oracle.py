"""An independent model: transformers with an explicit mask per (layer, KV head). It shares no code with the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM

NAME = "explicit_head_masks"
State = list[list[tuple[int, int] | None]]
"""Per layer and KV head: (window, sink), or None for a head that sees everything."""


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    heads: list[tuple[int, int] | None],
    scaling: float,
) -> torch.Tensor:
    """query [1, Hq, T, D], key and value [1, H, T, D] -> [1, T, Hq, D]; every head gets its own [T, T] mask."""
    length, ratio = query.shape[2], query.shape[1] // key.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    rows = []
    for index in range(query.shape[1]):
        head = index // ratio
        allowed = distance >= 0
        if (limits := heads[head]) is not None:
            window, sink = limits
            allowed = allowed & ((distance < window) | (torch.arange(length) < sink))
        scores = (query[0, index] @ key[0, head].T).float() * scaling
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1).to(value.dtype)
        rows.append(weights @ value[0, head])
    return torch.stack(rows, dim=1)[None]


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' contract."""
    del mask, kwargs
    return masked_attention(query, key, value, module.redknot_heads, scaling), None


class MaskedModel:
    """A transformers model whose attention obeys per-head windows and sinks."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        AttentionInterface.register(NAME, _attention)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=NAME
        ).eval()

    @torch.inference_mode()
    def prompt_logprobs(self, prompt: Sequence[int], heads: State) -> list[float]:
        """Logprob of each prompt token from the second on."""
        for layer, limits in zip(self.model.model.layers, heads, strict=True):
            layer.self_attn.redknot_heads = limits
        logits = self.model(torch.tensor([list(prompt)]), use_cache=False).logits[0, :-1].float()
        targets = torch.tensor(list(prompt[1:]))
        chosen = logits.log_softmax(-1).gather(1, targets[:, None])
        values: list[float] = chosen[:, 0].tolist()
        return values
