"""An independent model that skips rows: transformers, with zeros for what skipping tokens would add to the residual."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tests.engine.oracle import MaskedModel, State

if TYPE_CHECKING:
    # Imports vLLM, which tests of the profiler do not need.
    from tests.engine.harness import Completion


def one_value_probe(width: int, place: int = 0) -> dict[str, Any]:
    """A probe of one value's sign: as a rule, half of the tokens'."""
    weights = np.zeros(width, "<f2")
    weights[place] = 1.0
    return {"threshold": 0.0, "weights": base64.b64encode(weights.tobytes()).decode()}


class SkippedRows:
    """Makes the layers of a transformers model add zeros for tokens that skip, as a schedule's JSON object says."""

    def __init__(self, model: Any) -> None:
        self.skipped_ffn_rows = 0
        self._skips = torch.empty(0, dtype=torch.bool)  # [T], tokens that are neither sinks nor recent
        self._rows: dict[str, Any] = {}
        self._residual = self._added = torch.empty(0)
        for index, layer in enumerate(model.model.layers):
            layer.register_forward_pre_hook(self._note_residual)
            layer.self_attn.register_forward_hook(self._attention_hook(index))
            layer.mlp.register_forward_hook(self._ffn_hook(index))

    def expect(self, num_tokens: int, prompt_tokens: int, rows: dict[str, Any]) -> None:
        """The next forward pass is of so many tokens, the first `prompt_tokens` of which are a prompt."""
        position = torch.arange(num_tokens)
        self._rows = rows
        recent = prompt_tokens - rows.get("recent", 128)
        self._skips = (position >= rows.get("sink", 4)) & (position < recent)
        self.skipped_ffn_rows = 0

    def _note_residual(self, module: Any, arguments: tuple[Any, ...]) -> None:
        del module
        self._residual = arguments[0][0].float().norm(dim=-1)

    def _attention_hook(self, index: int) -> Any:
        def hook(module: Any, arguments: Any, output: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
            del module, arguments
            added = output[0]
            self._added = added[0].float().norm(dim=-1)
            first = self._rows.get("attention_from")
            skips = self._skips if first is not None and index >= first else torch.zeros_like(self._skips)
            return added.masked_fill(skips[None, :, None], 0.0), *output[1:]

        return hook

    def _ffn_hook(self, index: int) -> Any:
        def hook(module: Any, arguments: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            first = self._rows.get("ffn_from")
            sparse = self._rows.get("sparse_ffn", {})
            threshold = sparse.get("thresholds", {}).get(str(index))
            probe = sparse.get("probes", {}).get(str(index))
            skips = torch.zeros_like(self._skips)
            if first is not None and index >= first:
                skips = self._skips
            elif threshold is not None:
                skips = self._skips & (self._added < threshold * self._residual)
            elif probe is not None:
                weights = np.frombuffer(base64.b64decode(probe["weights"]), "<f2").astype(np.float32)
                scores = (arguments[0][0].float() * torch.from_numpy(weights)).sum(-1)
                skips = self._skips & (scores < probe["threshold"])
            self.skipped_ffn_rows += int(skips.sum())
            if hasattr(module, "shared_expert"):
                gate = module.shared_expert_gate(arguments[0]).sigmoid()
                return torch.where(skips[None, :, None], gate * module.shared_expert(arguments[0]), output)
            return output.masked_fill(skips[None, :, None], 0.0)

        return hook


class SkippingModel(MaskedModel):
    """`MaskedModel` whose tokens skip rows as a schedule's JSON object says. One prompt at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        super().__init__(folder, dtype)
        self._skipped = SkippedRows(self.model)

    @property
    def skipped_ffn_rows(self) -> int:
        """Of the last prompt, over all layers."""
        return self._skipped.skipped_ffn_rows

    @torch.inference_mode()
    def logprobs(
        self, prompt: Sequence[int], answer: Sequence[int], heads: State, rows: dict[str, Any]
    ) -> torch.Tensor:
        """[len(answer), vocabulary]: before each token of the answer."""
        for layer, limits in zip(self.model.model.layers, heads, strict=True):
            layer.self_attn.redknot_heads = limits
        tokens = [*prompt, *answer][:-1]
        self._skipped.expect(len(tokens), len(prompt), rows)
        logits = self.model(torch.tensor([tokens]), use_cache=False).logits[0, len(prompt) - 1 :].float()
        result: torch.Tensor = logits.log_softmax(-1)
        return result


def largest_error(completion: Completion, logprobs: torch.Tensor) -> float:
    """Largest difference between a completion's most likely tokens and a model's logprobs of the same tokens."""
    return max(
        abs(value - float(logprobs[step, token]))
        for step, likely in enumerate(completion.runners_up)
        for token, value in likely.items()
    )
