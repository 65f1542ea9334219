"""Faults in the log: each reason at most once a minute, so that a broken disk does not flood it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Final

from vllm_redknot.reuse.faults import Miss

# vLLM's, so that a server shows it with its own lines; by name, as the `store` commands work without vLLM.
logger = logging.getLogger("vllm.redknot")

INTERVAL_S: Final = 60.0


class FaultLog:
    """Warnings with a count of those that were left out since the last of their reason."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._last: dict[tuple[str, Miss], float] = {}
        self._left_out: Counter[tuple[str, Miss]] = Counter()

    def fault(self, what: str, reason: Miss, message: str) -> None:
        """`what` came of it, such as "not served"."""
        key, now = (what, reason), time.monotonic()
        if now - self._last.get(key, -self._interval_s) < self._interval_s:
            self._left_out[key] += 1
            return
        self._last[key] = now
        more = self._left_out.pop(key, 0)
        suffix = f" ({more} more since the last such line)" if more else ""
        logger.warning("REDKNOT: stored KV: %s (%s): %s%s", what, reason.value, message, suffix)
