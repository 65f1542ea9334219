"""Token ids of texts alone, by the engine's own tokenizer. Documents recur, so those of the last ones are kept."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections import OrderedDict
from typing import Any, Final, Protocol

import numpy as np
from vllm.logger import init_logger
from vllm.tokenizers import cached_tokenizer_from_config

from vllm_redknot.reuse.texts import TextTokens

logger = init_logger("vllm.redknot")

MAX_KEPT_TOKENS: Final = 4 << 20
"""Of all texts whose tokens are kept: 16 MiB."""


class Tokenizer(Protocol):
    """What is asked of vLLM's tokenizers."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids."""


class TextTokenizer:
    """Tokenises texts, from any thread, one at a time.

    Args:
        tokenizer: nobody else's: a tokenizer that is in use cannot be given other settings.
        max_kept: tokens of the texts that are remembered.
    """

    def __init__(self, tokenizer: Tokenizer, max_kept: int = MAX_KEPT_TOKENS) -> None:
        self._tokenizer = tokenizer
        self._max_kept = max_kept
        self._lock = threading.Lock()
        self._kept: OrderedDict[bytes, TextTokens] = OrderedDict()
        self._num_kept = 0

    def __call__(self, text: str) -> TextTokens:
        """int32 [n], without the tokens that a tokenizer puts before a text."""
        key = hashlib.sha256(text.encode()).digest()
        with self._lock:
            tokens = self._kept.get(key)
            if tokens is None:
                tokens = np.asarray(self._tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)
                self._keep(key, tokens)
            else:
                self._kept.move_to_end(key)
        return tokens

    def _keep(self, key: bytes, tokens: TextTokens) -> None:
        # A text without tokens takes room too.
        self._kept[key] = tokens
        self._num_kept += len(tokens) + 1
        while self._num_kept > self._max_kept:
            _, oldest = self._kept.popitem(last=False)
            self._num_kept -= len(oldest) + 1


def text_tokenizer(model_config: Any) -> TextTokenizer | None:
    """That of an engine; None if it has none (`skip_tokenizer_init`), or none that can be copied, which is logged.

    A copy: the frontend, which may be in this process, changes settings of its own between two prompts.
    """
    try:
        tokenizer = copy.deepcopy(cached_tokenizer_from_config(model_config))
    except Exception:
        logger.warning("REDKNOT: no tokenizer: documents marked by text are not found", exc_info=True)
        return None
    return None if tokenizer is None else TextTokenizer(tokenizer)
