"""Block hashes that keep KV of prompts that skipped rows apart in vLLM's prefix cache.

The KV of a token depends on whether it and the tokens before it skipped. In two prompts of one schedule that is the
same up to the last `recent` tokens of the shorter one. So block hashes are marked with the schedule, and from the block
on that holds the first of those last tokens with the prompt's length as well. Prompts too short to skip anything, and
requests with row skipping off, keep vLLM's own hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from vllm_redknot.rows.requests import skips_rows
from vllm_redknot.rows.schedule import RowSchedule


class RowBlockHasher:
    """vLLM's block hasher of requests, with row skipping marked."""

    def __init__(
        self, original: Callable[[Any], list[bytes]], schedule: RowSchedule, block_size: int
    ) -> None:
        self._original = original
        self._schedule = schedule
        self._block_size = block_size
        self._digest = schedule.digest()

    def __call__(self, request: Any) -> list[bytes]:
        """Hashes of the request's blocks that are full and have none yet.

        Args:
            request: vLLM's `Request`.
        """
        first = len(request.block_hashes)
        hashes = self._original(request)
        shared = self.shared_blocks(request)
        if shared is None:
            return hashes
        ending = f"{self._digest} {request.num_prompt_tokens}"
        return [
            _marked(value, self._digest if index < shared else ending)
            for index, value in enumerate(hashes, first)
        ]

    def shared_blocks(self, request: Any) -> int | None:
        """First blocks of a request that a longer prompt may share; None if none of its tokens skips."""
        start, stop = self._schedule.skippable(request.num_prompt_tokens)
        if start >= stop or not skips_rows(request.sampling_params):
            return None
        return stop // self._block_size

    def shared_tokens(self, request: Any) -> int:
        """The same in tokens, 0 if none skips."""
        return (self.shared_blocks(request) or 0) * self._block_size


def shared_tokens(request: Any) -> int:
    """How many first tokens of a request that skips rows a longer prompt may share; 0 if it skips none."""
    hasher = getattr(request, "_block_hasher", None)
    return hasher.shared_tokens(request) if isinstance(hasher, RowBlockHasher) else 0


def _marked(block_hash: bytes, mark: str) -> bytes:
    return hashlib.sha256(mark.encode() + block_hash).digest()[: len(block_hash)]
