"""SegPagedAttention against stock vLLM's CPU attention: one thread by default, interleaved, medians with quartiles.

`python -m benchmarks.attention` writes benchmarks/results/attention_cpu.json and, where matplotlib is installed, a plot
beside it. `--quick` runs a short form. Both read keys and values from scattered 32-token pages of cold memory.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from vllm_redknot.kernels import native
from vllm_redknot.kernels.layout import GLOBAL_WINDOW, SegmentLayout
from vllm_redknot.kernels.segpaged_attention import plan_batch, segpaged_attention

PAGE_SIZE, SINK, WINDOW = 32, 4, 256
EVICTED_BYTES = 64 << 20
DECODE_ROUNDS = 9
SHORT_CONTEXT = 1024
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Problem:
    """One attention call of `requests` requests: `query_len` new tokens each, the last at position seq_len - 1.

    Our pages are scattered over a pool with room for `pool_len` tokens per request: a server's pool is as large with
    short contexts as with long ones, and how far pages lie apart decides how many page-table entries are read.
    """

    name: str
    heads: int
    kv_heads: int
    head_size: int
    requests: int
    query_len: int
    seq_len: int
    windows: tuple[int, ...]
    pool_len: int

    @property
    def flops(self) -> float:
        """Multiplications and additions of Q K^T and P V over visible pairs, all heads global."""
        context = self.seq_len - self.query_len
        pairs = self.requests * self.query_len * (context + (self.query_len + 1) / 2)
        return 4 * self.head_size * self.heads * pairs

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of all heads, bf16."""
        return self.requests * self.seq_len * self.kv_heads * self.head_size * 4


def problems(quick: bool) -> list[Problem]:
    """The measured calls; each mixes stock's reference (all heads global) with local and mixed head classes."""
    shapes = [(9, 3, 64)] if quick else [(9, 3, 64), (32, 8, 128)]
    found = []
    for heads, kv_heads, size in shapes:
        model = (heads, kv_heads, size)
        dense, local = (GLOBAL_WINDOW,) * kv_heads, (WINDOW,) * kv_heads
        found.append(Problem("prefill, all global", *model, 1, 2048, 8192, dense, 8192))
        found.append(Problem("prefill, all local", *model, 1, 2048, 8192, local, 8192))
        for batch in (1, 8):
            found.append(Problem(f"decode batch {batch}, all global", *model, batch, 1, 8192, dense, 8192))
        found.append(Problem("decode batch 8, all local", *model, 8, 1, 8192, local, 8192))
    # 13 of 90 KV heads global, as one call: a layer of that many heads.
    mixed = (GLOBAL_WINDOW,) * 13 + (WINDOW,) * 77
    length = 1024 if quick else 4096
    for name, windows in (("mixed", mixed), ("global", (GLOBAL_WINDOW,) * 90), ("local", (WINDOW,) * 90)):
        found.append(
            Problem(f"prefill of 90 KV heads, {name}", 90, 90, 64, 1, length // 4, length, windows, length)
        )
    return found


def ours(problem: Problem) -> Callable[[], None]:
    """Our kernel on random tensors of the problem."""
    size, heads = problem.head_size, problem.kv_heads
    pages, pool_pages = (-(-length // PAGE_SIZE) for length in (problem.seq_len, problem.pool_len))
    segment = problem.requests * pool_pages * PAGE_SIZE * 2 * size
    windows = torch.tensor(problem.windows, dtype=torch.int32)
    layout = SegmentLayout(
        pool=torch.randn(heads * segment).bfloat16(),
        base=torch.arange(heads) * segment,
        group=torch.zeros(heads, dtype=torch.int32),
        window=windows,
        sink=torch.where(windows == GLOBAL_WINDOW, 0, SINK).int(),
        page_stride=PAGE_SIZE * 2 * size,
        token_stride=2 * size,
        value_offset=size,
        page_size=PAGE_SIZE,
        head_size=size,
    )
    tokens = problem.requests * problem.query_len
    batch = plan_batch(
        torch.randperm(problem.requests * pool_pages)[: problem.requests * pages]
        .int()
        .view(1, problem.requests, pages),
        torch.arange(problem.requests + 1, dtype=torch.int32) * problem.query_len,
        torch.full((problem.requests,), problem.seq_len, dtype=torch.int32),
        tokens,
        problem.query_len,
        problem.seq_len,
    )
    query = torch.randn(tokens, problem.heads, size).bfloat16()
    return partial(segpaged_attention, query, layout, batch, torch.empty_like(query), size**-0.5)


def stock(problem: Problem) -> Callable[[], None]:
    """Stock vLLM's operator on the same shapes, all heads global; imported here because only this needs vLLM."""
    from vllm import _custom_ops as ops

    size, heads = problem.head_size, problem.kv_heads
    pages = -(-problem.seq_len // PAGE_SIZE)
    total = problem.requests * pages
    key_cache, value_cache = torch.randn(total, heads, 2 * PAGE_SIZE, size).bfloat16().chunk(2, dim=2)
    starts = torch.arange(problem.requests + 1, dtype=torch.int32) * problem.query_len
    lengths = torch.full((problem.requests,), problem.seq_len, dtype=torch.int32)
    isa = "amx" if torch.cpu._is_amx_tile_supported() else "vec"
    metadata = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=problem.requests,
        num_heads=problem.heads,
        num_kv_heads=heads,
        head_dim=size,
        seq_lens=lengths,
        dtype=torch.bfloat16,
        query_start_loc=starts,
        causal=True,
        sliding_window_size=-1,
        isa=isa,
        enable_kv_split=True,
    )
    query = torch.randn(problem.requests * problem.query_len, problem.heads, size).bfloat16()
    return partial(
        ops.cpu_attention_with_kv_cache,
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        output=torch.empty_like(query),
        query_start_loc=starts,
        seq_lens=lengths,
        scale=size**-0.5,
        causal=True,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=torch.randperm(total).int().view(problem.requests, pages),
        softcap=0.0,
        scheduler_metadata=metadata,
        s_aux=None,
    )


def copy(size: int) -> Callable[[], None]:
    """A copy of `size` bytes, which reads and writes them."""
    source = torch.zeros(size // 4)
    target = torch.empty_like(source)

    def run() -> None:
        target.copy_(source)

    return run


def interleaved(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one after another in every round; a first round warms up and does not count.

    Before each call a copy empties the caches of its tensors, as the rest of a model does between two layers.
    """
    evict = copy(EVICTED_BYTES)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(repeats + 1):
        for name, call in calls.items():
            evict()
            start = time.perf_counter()
            call()
            if round_number:
                samples[name].append(time.perf_counter() - start)
    return samples


def measure(problem: Problem, repeats: int) -> dict[str, object]:
    """Samples and medians of one problem; stock runs the same shape with all heads global."""
    calls = {"ours": ours(problem), "stock": stock(problem)}
    if problem.query_len == 1:
        calls["copy"] = copy(problem.kv_bytes)
        # A call of a few hundred microseconds needs more rounds for a steady median.
        repeats *= DECODE_ROUNDS
        if GLOBAL_WINDOW not in problem.windows:
            calls["ours, short context"] = ours(replace(problem, seq_len=SHORT_CONTEXT))
    samples = interleaved(calls, repeats)
    quartiles = {name: statistics.quantiles(times, n=4) for name, times in samples.items()}
    median = {name: q[1] for name, q in quartiles.items()}
    row: dict[str, object] = {
        "problem": {k: v for k, v in asdict(problem).items() if k != "windows"},
        "global_heads": problem.windows.count(GLOBAL_WINDOW),
        "seconds": samples,
        "quartiles": quartiles,
        "speedup": median["stock"] / median["ours"],
    }
    if problem.query_len > 1 and set(problem.windows) == {GLOBAL_WINDOW}:
        row["gflops"] = {name: problem.flops / median[name] / 1e9 for name in ("ours", "stock")}
    if "ours, short context" in median:
        row["times_short_context"] = median["ours"] / median["ours, short context"]
    if "copy" in median:
        row["gigabytes_per_second"] = {
            name: problem.kv_bytes / median[name] / 1e9 for name in ("ours", "stock")
        }
        # A copy moves each byte twice.
        row["copy_gigabytes_per_second"] = 2 * problem.kv_bytes / median["copy"] / 1e9
    return row


def pin(threads: int) -> list[int]:
    """Bind this process to its last `threads` CPUs and use as many threads; returns the CPUs."""
    cpus = sorted(os.sched_getaffinity(0))[-threads:]
    os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)
    return cpus


def plot(speedups: dict[str, float], path: Path) -> None:
    """Speed-up over stock by problem, as horizontal bars. Does nothing without matplotlib."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    figure, axes = pyplot.subplots(figsize=(9, 0.35 * len(speedups) + 1.2), layout="constrained")
    axes.barh(list(speedups), list(speedups.values()))
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("speed-up over stock vLLM running all heads global")
    axes.invert_yaxis()
    figure.savefig(path)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few shapes and repeats, for a first look")
    parser.add_argument("--repeats", type=int, help="timed rounds per problem (default 11, quick 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads, each pinned to a CPU of its own")
    parser.add_argument("--output", type=Path, default=RESULTS / "attention_cpu.json")
    arguments = parser.parse_args()
    repeats = arguments.repeats or (3 if arguments.quick else 11)
    cpus = pin(arguments.threads)
    kernels = native.load()
    if kernels is None:
        raise SystemExit("the C++ kernels are not available, there is nothing to measure")
    torch.manual_seed(0)
    rows, speedups = [], {}
    for problem in problems(arguments.quick):
        rows.append(measure(problem, repeats))
        size = f"{problem.heads}/{problem.kv_heads} x {problem.head_size}"
        speedups[f"{problem.name}, {size}"] = float(str(rows[-1]["speedup"]))
        numbers = [f"{rows[-1]['speedup']:.2f}x stock (all global)"]
        for unit, key in (("GFLOP/s", "gflops"), ("GB/s", "gigabytes_per_second")):
            speeds = rows[-1].get(key)
            if isinstance(speeds, dict):
                numbers.append(f"{speeds['ours']:.1f} against {speeds['stock']:.1f} {unit}")
        if "times_short_context" in rows[-1]:
            numbers.append(f"{rows[-1]['times_short_context']:.2f} times its time at {SHORT_CONTEXT}")
        if "copy_gigabytes_per_second" in rows[-1]:
            numbers.append(f"copy {rows[-1]['copy_gigabytes_per_second']:.1f} GB/s")
        print(f"{problem.name:40} {size:12} " + ", ".join(numbers), flush=True)
    report = {
        "machine": describe_machine(),
        "variant": kernels.runnable[0],
        "threads": arguments.threads,
        "pinned_to_cpus": cpus,
        "load_average": os.getloadavg(),
        "arguments": {"quick": arguments.quick, "repeats": repeats},
        "results": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot(speedups, arguments.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
