"""A Hugging Face model whose attention, layer by layer, is computed by a function of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.utils import logging

from vllm_redknot.profiler.errors import ProfilerError
from vllm_redknot.profiler.profilable import check_profilable

IMPLEMENTATION: Final = "redknot_profiler"

LayerAttention = Callable[["AttentionCall"], torch.Tensor]


class AttentionCall:
    """What one layer's attention is given: query [Hq, T, D], key and value [H, T, D], after rotary embedding."""

    def __init__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> None:
        self.module = module
        self.layer: int = module.layer_idx
        self.query, self.key, self.value, self.scaling = query, key, value, scaling


def _interface(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' contract: query [1, Hq, T, D] -> [1, T, Hq, D]."""
    del attention_mask
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ProfilerError(f"layer {module.layer_idx} attends with {name!r}, which the profiler cannot")
    if options.get("sliding_window") is not None and options["sliding_window"] < query.shape[2]:
        raise ProfilerError(
            f"layer {module.layer_idx} has a sliding window of its own ({options['sliding_window']} tokens):"
            " profile models whose layers all see everything"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    owner: HookedModel = module.redknot_owner
    result = owner.attention(AttentionCall(module, query[0], key[0], value[0], scale))
    return result.transpose(0, 1)[None], None


def _load(folder: Path, dtype: torch.dtype) -> Any:
    """The model on the CPU; of safetensors files alone, without code of its own. Raises ProfilerError."""
    AttentionInterface.register(IMPLEMENTATION, _interface)
    try:
        with _without_bars():
            return AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=IMPLEMENTATION,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ProfilerError(f"{folder}: transformers cannot load it: {error}") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws none of its progress bars: the one on the screen is ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class HookedModel:
    """A causal language model in evaluation mode without gradients for its weights.

    Set `attention` to the function every layer is to use; `logits` runs the model.

    Raises:
        ProfilerError: transformers cannot load the folder, or its attention is no plain softmax attention over
            everything, or does not go through the common interface.
    """

    attention: LayerAttention

    def __init__(self, folder: Path, dtype: torch.dtype, device: str = "cpu") -> None:
        check_profilable(folder)
        self.model = _load(folder, dtype).to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        self.layers: dict[int, Any] = {}
        for name, module in self.model.named_modules():
            if hasattr(module, "layer_idx") and hasattr(module, "o_proj"):
                if module.layer_idx in self.layers:
                    raise ProfilerError(f"{folder}: two attentions claim layer {module.layer_idx} ({name})")
                module.redknot_owner = self
                self.layers[module.layer_idx] = module
        if not self.layers:
            raise ProfilerError(
                f"{folder}: {type(self.model).__name__} has no attention that the profiler knows"
            )

    def logits(self, tokens: tuple[int, ...], last: int) -> torch.Tensor:
        """Logits at the last `last` positions, fp32 [last, vocabulary]."""
        ids = torch.tensor([tokens], device=self.device)
        output = self.model(ids, use_cache=False, logits_to_keep=last)
        result: torch.Tensor = output.logits[0].float()
        return result
