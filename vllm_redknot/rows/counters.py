"""How many rows of which layer were computed and how many skipped, in the log and among vLLM's Prometheus metrics."""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from vllm.logger import init_logger

from vllm_redknot.rows.metrics import RowMetricFile

logger = init_logger("vllm.redknot")

LOG_SECONDS: Final = 10.0
ATTENTION: Final = "attention"
FFN: Final = "ffn"
COMPUTED: Final = "computed"
SKIPPED: Final = "skipped"


class RowCounters:
    """Rows of prefill steps. A row is one token in one layer."""

    def __init__(self, metrics: RowMetricFile | None) -> None:
        """
        Args:
            metrics: where they are shown by layer; None: nowhere, as on all tensor-parallel ranks but one.
        """
        self.rows: Counter[tuple[str, str]] = Counter()
        """By kind and outcome, over all layers."""
        self._metrics = metrics
        self._logged: Counter[tuple[str, str]] = Counter()
        self._next_log = 0.0

    def add(self, kind: str, layer: int, computed: int, skipped: int) -> None:
        """Count one layer of a step.

        Args:
            kind: ATTENTION or FFN.
            layer: of the model.
            computed: rows computed.
            skipped: rows skipped.
        """
        for outcome, count in ((COMPUTED, computed), (SKIPPED, skipped)):
            self.rows[kind, outcome] += count
            if self._metrics is not None:
                self._metrics.add(kind, layer, outcome, count)

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
