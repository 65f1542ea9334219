"""What the plugin costs an engine step besides arithmetic: Python per layer, and tables per KV-cache group.

`python -m benchmarks.overhead` writes benchmarks/results/overhead.json. Every call is on one decode token over one
page, so that nearly all of its time is overhead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.machine import describe_machine
from vllm_redknot.attention.step import StepTables
from vllm_redknot.kernels.kv_write import kv_write
from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.segpaged_attention import plan_batch, segpaged_attention

RESULTS = Path(__file__).parent / "results"
HEADS, KV_HEADS, HEAD_SIZE, PAGE = 9, 3, 64, 32


def microseconds(call: Callable[[], object], repeats: int = 21, inner: int = 200) -> list[float]:
    """Samples of the mean time of a call."""
    samples = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(inner):
            call()
        samples.append((time.perf_counter() - started) / inner * 1e6)
    return samples


def layer_calls() -> dict[str, Callable[[], object]]:
    """The two kernel calls of a layer, on one token."""
    elements = PAGE * 2 * HEAD_SIZE
    layout = SegmentLayout(
        pool=torch.randn(KV_HEADS * elements).bfloat16(),
        base=torch.arange(KV_HEADS) * elements,
        group=torch.arange(KV_HEADS, dtype=torch.int32),
        window=torch.full((KV_HEADS,), 256, dtype=torch.int32),
        sink=torch.full((KV_HEADS,), 4, dtype=torch.int32),
        page_stride=elements,
        token_stride=2 * HEAD_SIZE,
        value_offset=HEAD_SIZE,
        page_size=PAGE,
        head_size=HEAD_SIZE,
    )
    batch = plan_batch(
        torch.zeros(KV_HEADS, 1, 1, dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([1], dtype=torch.int32),
        1,
        1,
        1,
    )
    query = torch.randn(1, HEADS, HEAD_SIZE).bfloat16()
    output, key = torch.empty_like(query), torch.randn(1, KV_HEADS, HEAD_SIZE).bfloat16()
    slots = torch.zeros(KV_HEADS, 1, dtype=torch.int64)
    return {
        "segpaged_attention": lambda: segpaged_attention(query, layout, batch, output, 0.125),
        "kv_write": lambda: kv_write(key, key, layout, slots),
    }


def step_tables(groups: int, requests: int, seq_len: int) -> Callable[[], object]:
    """Entering all groups' tables into one decode step."""
    pages = seq_len // PAGE
    config = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=requests, max_num_batched_tokens=2048),
        model_config=SimpleNamespace(max_model_len=seq_len),
        cache_config=SimpleNamespace(block_size=PAGE),
    )
    tables = StepTables(config)
    tables.set_groups(groups)
    common = SimpleNamespace(
        block_table_tensor=torch.zeros(requests, pages, dtype=torch.int32),
        slot_mapping=torch.zeros(requests, dtype=torch.int64),
        query_start_loc=torch.arange(requests + 1, dtype=torch.int32),
        seq_lens=torch.full((requests,), seq_len, dtype=torch.int32),
        seq_lens_cpu_upper_bound=None,
        num_reqs=requests,
        num_actual_tokens=requests,
        max_query_len=1,
        max_seq_len=seq_len,
    )
    return lambda: [tables.add(group, common, PAGE) for group in range(groups)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "overhead.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    calls = {f"layer: {name}": call for name, call in layer_calls().items()}
    calls["step: tables of 7 groups, 1 request of 8K"] = step_tables(7, 1, 8192)
    calls["step: tables of 7 groups, 32 requests of 8K"] = step_tables(7, 32, 8192)
    calls["step: tables of 16 groups, 64 requests of 8K"] = step_tables(16, 64, 8192)
    samples = {name: microseconds(call, inner=200 if "layer" in name else 20) for name, call in calls.items()}
    medians = {name: round(statistics.median(values), 1) for name, values in samples.items()}
    document = {"machine": describe_machine(), "median_us": medians, "samples_us": samples}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
