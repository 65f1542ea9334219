"""Time is charged to the innermost module, and the page shows what the ablation measured."""

from typing import Any

from benchmarks.ablation import ffn_computed
from benchmarks.prefill_profile import ModuleTimes
from tools.performance_page import rows
from vllm_redknot.rows.schedule import RowSchedule

MASS: dict[str, Any] = {"rule": "mass", "start": 1, "share": 0.5}


def test_time_within_a_module_is_not_its_own() -> None:
    clock = iter([0.0, 1.0, 4.0, 6.0, 7.0, 9.0])
    times = ModuleTimes(lambda: next(clock))
    times.enter("layer")
    times.enter("norm")
    times.leave()
    times.enter("norm")
    times.leave()
    times.leave()
    assert times.seconds == {"layer": 1.0 + 2.0 + 2.0, "norm": 3.0 + 1.0}


def test_what_a_sparse_ffn_computed_is_read_from_the_rows_that_were_skipped() -> None:
    schedule = RowSchedule.parse({"ffn_from": 2, "sink": 4, "recent": 96, "sparse_ffn": MASS})
    skipped = {"0": 0, "1": 750, "2": 1000}
    assert ffn_computed(schedule, {"tokens": 1100, "ffn_rows_skipped": skipped}) == {0: 1.0, 1: 0.25}
    # A prompt too short to skip says nothing.
    assert ffn_computed(schedule, {"tokens": 100, "ffn_rows_skipped": {"1": 0}}) == {}


def test_the_page_has_every_engine_and_kind() -> None:
    engines = ("stock", "heads", "rows", "both")
    samples = {name: {"ttft_7500_s": [8.0 / number]} for number, name in enumerate(engines, 1)}
    document = {
        "heads": "bundled profile",
        "mode": "eager",
        "rows": {"ffn_from": 20},
        "plan": {"ttft_lengths": [7500]},
        "samples": samples,
        "times_better_than_stock": {
            name: {"ttft_7500_s": float(number)} for number, name in enumerate(engines, 1)
        },
        "predicted": {
            "flops": {"7500": {name: {"total": 100 // number} for number, name in enumerate(engines, 1)}},
            "rows_skipped": {"7500": {"attention": 0.25, "ffn": 0.5}},
        },
        "breakdown": {
            name: {"tokens": 7500, "total": 3.0, "seconds": {"norms": 1.0, name: 2.0}} for name in engines
        },
    }
    lines = list(rows(document))
    assert "| 7500 | both | 2.000 | 4.00 | 4.00 |" in lines
    assert "| norms | 1.00 | 1.00 | 1.00 | 1.00 |" in lines
    assert "| rows | 0.00 | 0.00 | 2.00 | 0.00 |" in lines
    assert "| all | 3.00 | 3.00 | 3.00 | 3.00 |" in lines
    assert any("25.0% of all attention rows and 50.0% of all FFN rows" in line for line in lines)
