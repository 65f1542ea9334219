"""Attention as a head profile restricts it, and what is recorded while the dense model runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeVar

import torch

from vllm_redknot.heads.profile import HeadProfile, HeadVisibility
from vllm_redknot.profiler.hooked import AttentionCall
from vllm_redknot.profiler.windowed import attend, attend_rows

T = TypeVar("T")


def dense_attention(call: AttentionCall) -> torch.Tensor:
    """Every head sees everything."""
    return attend(call.query, call.key, call.value, None, 0, call.scaling)


class ProfiledAttention:
    """Every head sees what the profile says; heads that see alike are computed together."""

    def __init__(self, profile: HeadProfile) -> None:
        self._alike: dict[int, dict[HeadVisibility, list[int]]] = {}
        for layer in profile.layer_ids:
            alike: dict[HeadVisibility, list[int]] = defaultdict(list)
            for head in range(profile.num_kv_heads):
                alike[profile.visibility(layer, head)].append(head)
            self._alike[layer] = alike

    def __call__(self, call: AttentionCall) -> torch.Tensor:
        ratio = call.query.shape[0] // call.key.shape[0]
        result = torch.empty_like(call.query)
        for seen, heads in self._alike[call.layer].items():
            rows = [head * ratio + i for head in heads for i in range(ratio)]
            result[rows] = attend(
                call.query[rows], call.key[heads], call.value[heads], seen.window, seen.sink, call.scaling
            )
        return result

    def of_rows(self, call: AttentionCall, rows: torch.Tensor) -> torch.Tensor:
        """[Hq, T, D] with the outputs of the queries at `rows`, int64 [K], and zeros elsewhere."""
        ratio = call.query.shape[0] // call.key.shape[0]
        result = torch.zeros_like(call.query)
        query = call.query[:, rows]
        for seen, heads in self._alike[call.layer].items():
            mine = [head * ratio + i for head in heads for i in range(ratio)]
            near = attend_rows(
                query[mine], rows, call.key[heads], call.value[heads], seen.window, seen.sink, call.scaling
            )
            result[torch.tensor(mine, device=rows.device)[:, None], rows] = near
        return result


class RecordingAttention:
    """The dense model, with two scores of every KV head noted on the way; neither needs a T x T matrix.

    retrieval mass: attention of the last `rows` positions on the tokens of `span`, as far as those lie beyond sink and
        window; mean over positions, highest of the query heads that share the KV head.
    output deviation: norm of what the head's contribution to the residual stream changes by when it is restricted to
        sink and window, relative to the norm of the whole attention output; mean over the last `rows` positions.
    """

    def __init__(self, window: int, sink: int, rows: int, span: tuple[int, int]) -> None:
        self._window, self._sink, self._rows, self._span = window, sink, rows, span
        self.mass: dict[int, list[float]] = {}
        self.deviation: dict[int, list[float]] = {}

    def __call__(self, call: AttentionCall) -> torch.Tensor:
        full = dense_attention(call)
        local = attend(call.query, call.key, call.value, self._window, self._sink, call.scaling)
        kv_heads, rows = call.key.shape[0], self._rows
        self.mass[call.layer] = self._mass(call).unflatten(0, (kv_heads, -1)).amax(1).tolist()
        width = full.shape[0] * full.shape[2]
        weight = (
            call.module.o_proj.weight[:, :width].unflatten(1, (kv_heads, -1)).float()
        )  # [hidden, H, g * D]
        change = (full - local)[:, -rows:].float().unflatten(0, (kv_heads, -1)).permute(0, 2, 1, 3).flatten(2)
        whole = full[:, -rows:].float().unflatten(0, (kv_heads, -1)).permute(0, 2, 1, 3).flatten(2)
        moved = torch.einsum("hrd,ehd->hre", change, weight).norm(dim=-1)
        total = torch.einsum("hrd,ehd->re", whole, weight).norm(dim=-1)
        # A layer that writes nothing loses nothing.
        tiny = torch.finfo(total.dtype).tiny
        self.deviation[call.layer] = (moved / total.clamp_min(tiny)).mean(-1).tolist()
        return full

    def _mass(self, call: AttentionCall) -> torch.Tensor:
        length = call.query.shape[1]
        position = torch.arange(length - self._rows, length, device=call.query.device)[:, None]
        key_position = torch.arange(length, device=call.query.device)
        key = call.key.repeat_interleave(call.query.shape[0] // call.key.shape[0], 0)
        scores = (call.query[:, -self._rows :] @ key.transpose(1, 2)).float() * call.scaling
        weights = scores.masked_fill(key_position > position, float("-inf")).softmax(-1)
        begin, end = self._span
        wanted = (key_position >= max(begin, self._sink)) & (key_position < end)
        wanted = wanted & (position - key_position >= self._window)
        return (weights * wanted).sum(-1).mean(-1)


def in_order(values: dict[int, T], layers: Sequence[int]) -> list[T]:
    """[L][H] of what was recorded by layer."""
    return [values[layer] for layer in layers]
