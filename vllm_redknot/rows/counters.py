"""How many rows were computed and how many skipped, in the log and among vLLM's Prometheus metrics."""

from __future__ import annotations

import time
from collections import Counter
from functools import lru_cache
from typing import Any, Final

import prometheus_client
from vllm.logger import init_logger

logger = init_logger("vllm.redknot")

LOG_SECONDS: Final = 10.0
ATTENTION: Final = "attention"
FFN: Final = "ffn"
COMPUTED: Final = "computed"
SKIPPED: Final = "skipped"


class RowCounters:
    """Rows of prefill steps, summed over layers. A row is one token in one layer."""

    def __init__(self) -> None:
        self.rows: Counter[tuple[str, str]] = Counter()
        self._logged: Counter[tuple[str, str]] = Counter()
        self._next_log = 0.0

    def add(self, kind: str, computed: int, skipped: int) -> None:
        """Count one or more layers of a step.

        Args:
            kind: ATTENTION or FFN.
            computed: rows computed.
            skipped: rows skipped.
        """
        for outcome, count in ((COMPUTED, computed), (SKIPPED, skipped)):
            self.rows[kind, outcome] += count
            _metric().labels(kind=kind, outcome=outcome).inc(count)

    def log(self, now: float | None = None) -> None:
        """Say what was skipped since the last line, if that is long enough ago."""
        now = time.monotonic() if now is None else now
        if now < self._next_log or self.rows == self._logged:
            return
        since = self.rows - self._logged
        parts = [
            f"{kind} {since[kind, COMPUTED]:,} computed, {since[kind, SKIPPED]:,} skipped"
            for kind in (ATTENTION, FFN)
        ]
        logger.info("REDKNOT: rows of long prompts (tokens x layers): %s", "; ".join(parts))
        self._logged, self._next_log = self.rows.copy(), now + LOG_SECONDS


@lru_cache
def _metric() -> Any:
    return prometheus_client.Counter(
        "vllm:redknot_prefill_rows",
        "Rows (tokens x layers) of prefill steps in which tokens skip work",
        ["kind", "outcome"],
    )
