"""What of a model's folder a run needs before its weights: attention it can score.

Scores are right where all attention layers see everything before them, by plain softmax attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from vllm_redknot.heads.model_shape import LINEAR_KINDS
from vllm_redknot.profiler.errors import ProfilerError

FULL: Final = "full_attention"
KINDS: Final = {
    "sliding_attention": "a sliding window of their own",
    "chunked_attention": "chunked local attention",
}
"""What transformers' names of layer kinds mean to people."""


def check_profilable(folder: Path) -> None:
    """Read a model's configuration as transformers does, and refuse what a score would be wrong for.

    Raises:
        ProfilerError: transformers cannot read it, or its attention is of another kind; names each.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise ProfilerError(f"{folder}: transformers cannot read its config.json: {error}") from error
    if found := list(_obstacles(config.get_text_config(decoder=True))):
        raise ProfilerError(
            f"{folder} ({config.model_type}) has {' and '.join(found)}, which `redknot profile` cannot score: give it"
            " a model whose attention layers all see everything, or write the head classes by hand"
        )


def _obstacles(text: Any) -> Iterator[str]:
    if getattr(text, "kv_lora_rank", None):
        yield "multi-head latent attention (MLA)"
    kinds = getattr(text, "layer_types", None) or ()
    for kind, count in Counter(kinds).items():
        if kind != FULL and kind not in LINEAR_KINDS:
            yield f"{count} of {len(kinds)} layers with {KINDS.get(kind, f'attention of kind {kind!r}')}"
    window = getattr(text, "sliding_window", None)
    if not kinds and window and getattr(text, "use_sliding_window", True):
        yield f"layers with {KINDS['sliding_attention']} ({window} tokens)"
    if not kinds and getattr(text, "attention_chunk_size", None):
        yield f"layers with {KINDS['chunked_attention']}"
    if cap := getattr(text, "attn_logit_softcapping", None):
        yield f"soft-capped attention scores (attn_logit_softcapping {cap})"
