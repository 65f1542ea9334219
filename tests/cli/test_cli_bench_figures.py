"""Arithmetic of a benchmark: which gaps count, how long answers have to be, what a ratio is."""

import pytest

from vllm_redknot.benchmarking.document import bench_document
from vllm_redknot.benchmarking.figures import decode_gaps
from vllm_redknot.benchmarking.store import Round
from vllm_redknot.benchmarking.workloads import Crowd, Metric, Wanted, Workload, workloads


def test_only_gaps_while_every_request_decodes_count() -> None:
    early = [0.0, 1.0, 2.0, 3.0, 4.0]
    late = [1.5, 2.5, 3.5, 9.0]
    assert list(decode_gaps([early, late])) == [1.0, 1.0, 1.0, 1.0]
    assert list(decode_gaps([[0.0, 1.0], [2.0, 3.0]])) == []


def test_the_first_request_still_decodes_when_the_last_prompt_has_been_read() -> None:
    asked = workloads(Wanted(long=Crowd(8, 6000)), 8192, 512, quick=False, metrics=[Metric.ITL])
    long = asked[-1]
    prefill_steps = 8 * 6000 / 512
    assert long.answer_tokens > prefill_steps + 8


@pytest.mark.parametrize("context", [256, 2048, 8192, 131072])
@pytest.mark.parametrize("quick", [False, True])
def test_the_default_workloads_fit_any_usual_context(context: int, quick: bool) -> None:
    asked = workloads(Wanted(), context, 2048, quick, tuple(Metric))
    assert {one.metric for one in asked} == set(Metric)
    assert len({one.key for one in asked}) == len(asked)
    assert all(one.prompt_tokens + one.answer_tokens <= context for one in asked)


def test_a_ratio_is_of_medians_and_redknot_over_stock() -> None:
    asked = Workload(Metric.TTFT, 1, 64, 1)
    rounds = [
        Round(
            plan="x", round=1, side=side, max_concurrency=most, kv_cache_tokens=1, samples={asked.key: times}
        )
        for side, most, times in (("stock", 4.0, [2.0, 4.0, 100.0]), ("redknot", 8.0, [1.0]))
    ]
    document = bench_document({"heads": {"origin": "x"}}, [asked], rounds, 128, 1000)
    assert document["heads"] == {"origin": "x", "kv_share": 0.5}
    ttft, kv, concurrency = document["rows"]
    assert (ttft["stock"]["median"], ttft["ratio"], ttft["better"]) == (4.0, 0.25, "lower")
    assert (kv["stock"]["median"], kv["redknot"]["median"], kv["ratio"]) == (250.0, 125.0, 0.5)
    assert (concurrency["ratio"], concurrency["better"]) == (2.0, "higher")
