"""Rows computed and skipped are counted, exported and logged now and then."""

from __future__ import annotations

import logging

import prometheus_client
import pytest

from vllm_redknot.rows.counters import ATTENTION, COMPUTED, FFN, LOG_SECONDS, SKIPPED, RowCounters


def exported(kind: str, outcome: str) -> float:
    value = prometheus_client.REGISTRY.get_sample_value(
        "vllm:redknot_prefill_rows_total", {"kind": kind, "outcome": outcome}
    )
    return value or 0.0


def test_rows_are_summed_and_exported() -> None:
    before = exported(FFN, SKIPPED)
    counters = RowCounters()
    counters.add(FFN, 100, 40)
    counters.add(FFN, 1, 2)
    counters.add(ATTENTION, 7, 0)
    assert counters.rows == {
        (FFN, COMPUTED): 101,
        (FFN, SKIPPED): 42,
        (ATTENTION, COMPUTED): 7,
        (ATTENTION, SKIPPED): 0,
    }
    assert exported(FFN, SKIPPED) - before == 42


def test_the_log_says_what_is_new_and_not_too_often(caplog: pytest.LogCaptureFixture) -> None:
    counters = RowCounters()
    with caplog.at_level(logging.INFO, logger="vllm.redknot"):
        counters.log(now=0.0)
        counters.add(FFN, 1000, 2000)
        counters.log(now=1.0)
        counters.add(FFN, 5, 6)
        counters.log(now=1.0 + LOG_SECONDS / 2)
        counters.log(now=1.0 + LOG_SECONDS)
        counters.log(now=1.0 + 3 * LOG_SECONDS)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "ffn 1,000 computed, 2,000 skipped" in lines[0]
    assert "ffn 5 computed, 6 skipped" in lines[1]
