"""Rows computed and skipped are counted, and logged now and then."""

from __future__ import annotations

import logging

import pytest

from vllm_redknot.rows.counters import ATTENTION, COMPUTED, FFN, LOG_SECONDS, SKIPPED, RowCounters


def test_rows_are_summed_over_layers() -> None:
    counters = RowCounters(None)
    counters.add(FFN, 3, 100, 40)
    counters.add(FFN, 4, 1, 2)
    counters.add(ATTENTION, 3, 7, 0)
    assert counters.rows == {
        (FFN, COMPUTED): 101,
        (FFN, SKIPPED): 42,
        (ATTENTION, COMPUTED): 7,
        (ATTENTION, SKIPPED): 0,
    }


def test_the_log_says_what_is_new_and_not_too_often(caplog: pytest.LogCaptureFixture) -> None:
    counters = RowCounters(None)
    with caplog.at_level(logging.INFO, logger="vllm.redknot"):
        counters.log(now=0.0)
        counters.add(FFN, 3, 1000, 2000)
        counters.log(now=1.0)
        counters.add(FFN, 3, 5, 6)
        counters.log(now=1.0 + LOG_SECONDS / 2)
        counters.log(now=1.0 + LOG_SECONDS)
        counters.log(now=1.0 + 3 * LOG_SECONDS)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "ffn 1,000 computed, 2,000 skipped" in lines[0]
    assert "ffn 5 computed, 6 skipped" in lines[1]
