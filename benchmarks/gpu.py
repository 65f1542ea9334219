"""SegPagedAttention against stock vLLM's FlashAttention on a GPU: one call each, interleaved, medians with quartiles.

Not yet run on a GPU. `python -m benchmarks.gpu --output build/gpu.json` needs one, and vLLM's CUDA build.

Stock reads a paged cache of all KV heads, ours the head segments of the same tensors; with all heads global both must
give the same result, which is checked before anything is timed. Decode is timed as a replayed CUDA graph, as served.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from vllm_redknot.kernels.layout import GLOBAL_WINDOW, SegmentLayout
from vllm_redknot.kernels.segpaged_attention import Batch, plan_batch, segpaged_attention


@dataclass(frozen=True)
class Problem:
    """One attention call: `requests` of `query_len` new tokens each, `context` tokens before them."""

    requests: int
    query_len: int
    context: int
    query_heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    page_size: int = 16

    @property
    def length(self) -> int:
        """Tokens per request, the new ones included."""
        return self.query_len + self.context


PROBLEMS = (
    Problem(1, 2048, 6144),
    Problem(1, 2048, 30720),
    Problem(1, 1, 8191),
    Problem(8, 1, 8191),
    Problem(64, 1, 8191),
    Problem(8, 1, 131071),
)
CLASSES = {"all_global": 1.0, "one_in_eight_global": 0.125, "all_local": 0.0}
SINK, WINDOW = 4, 256


def build(problem: Problem, device: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    """Query [T, Hq, D], cache [H, pages, page_size, 2, D] of noise, and a batch whose pages are scattered over it."""
    generator = torch.Generator(device).manual_seed(seed)
    p, dtype = problem, torch.bfloat16
    per_request = -(-p.length // p.page_size)
    pages = p.requests * per_request
    cache = torch.randn(
        (p.kv_heads, pages, p.page_size, 2, p.head_size), generator=generator, dtype=dtype, device=device
    )
    query = torch.randn(
        (p.requests * p.query_len, p.query_heads, p.head_size),
        generator=generator,
        dtype=dtype,
        device=device,
    )
    table = torch.randperm(pages, generator=generator, device=device).int().view(1, p.requests, per_request)
    starts = torch.arange(p.requests + 1, dtype=torch.int32, device=device) * p.query_len
    lengths = torch.full((p.requests,), p.length, dtype=torch.int32, device=device)
    batch = plan_batch(table, starts, lengths, p.requests * p.query_len, p.query_len, p.length)
    return query, cache, batch


def segments(cache: torch.Tensor, global_share: float) -> SegmentLayout:
    """The head segments of `cache` [H, pages, page_size, 2, D]; the first heads are global."""
    heads, _, page_size, _, head_size = cache.shape
    is_global = torch.arange(heads, device=cache.device) < round(global_share * heads)
    return SegmentLayout(
        pool=cache.view(-1),
        base=torch.arange(heads, device=cache.device) * cache.stride(0),
        group=torch.zeros(heads, dtype=torch.int32, device=cache.device),
        window=torch.where(is_global, GLOBAL_WINDOW, WINDOW).int(),
        sink=torch.where(is_global, 0, SINK).int(),
        page_stride=cache.stride(1),
        token_stride=cache.stride(2),
        value_offset=cache.stride(3),
        page_size=page_size,
        head_size=head_size,
    )


def visible_pairs(problem: Problem, global_share: float) -> float:
    """(query, key) pairs per KV head and request, averaged over heads."""
    positions = torch.arange(problem.context, problem.length, dtype=torch.float64) + 1
    local = torch.minimum(positions, torch.tensor(float(SINK + WINDOW)))
    return float((global_share * positions + (1 - global_share) * local).sum())


def read_keys(problem: Problem, global_share: float) -> float:
    """Keys that a call must read at least, per KV head and request, averaged over heads."""
    local = min(problem.length, problem.query_len + WINDOW - 1 + SINK)
    return global_share * problem.length + (1 - global_share) * local


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a replay of a CUDA graph."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def new_event() -> torch.cuda.Event:
    """An event that carries a time stamp."""
    return torch.cuda.Event(enable_timing=True)


def time_interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, one after the other, `repeats` times, with the L2 cache written over in between."""
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 3):
        for name, call in calls.items():
            begin, end = new_event(), new_event()
            flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            if repeat >= 3:
                samples[name].append(begin.elapsed_time(end))
    return samples


def stock_call(
    problem: Problem, query: torch.Tensor, cache: torch.Tensor, batch: Batch
) -> Callable[[], torch.Tensor]:
    """vLLM's FlashAttention over the same keys, laid out as stock lays them out."""
    from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func, get_flash_attn_version

    key = cache[:, :, :, 0].permute(1, 2, 0, 3).contiguous()  # [pages, page_size, H, D]
    value = cache[:, :, :, 1].permute(1, 2, 0, 3).contiguous()
    output, table = torch.empty_like(query), batch.block_tables[0]

    def call() -> torch.Tensor:
        flash_attn_varlen_func(
            q=query,
            k=key,
            v=value,
            out=output,
            cu_seqlens_q=batch.cu_seqlens_q,
            max_seqlen_q=batch.max_query_len,
            seqused_k=batch.seq_lens,
            max_seqlen_k=batch.max_seq_len,
            softmax_scale=problem.head_size**-0.5,
            causal=True,
            block_table=table,
            fa_version=get_flash_attn_version(),
        )
        return output

    return call


def measure(problem: Problem, repeats: int) -> list[dict[str, object]]:
    """Results of one problem: stock and ours with each share of global heads.

    Raises:
        AssertionError: ours with all heads global differs from stock.
    """
    query, cache, batch = build(problem, "cuda")
    scale = problem.head_size**-0.5
    stock = stock_call(problem, query, cache, batch)
    calls: dict[str, Callable[[], object]] = {"stock": stock}
    outputs = {name: torch.full_like(query, float("nan")) for name in CLASSES}
    layouts = {name: segments(cache, share) for name, share in CLASSES.items()}
    for name in CLASSES:
        calls[name] = partial(segpaged_attention, query, layouts[name], batch, outputs[name], scale)
    calls["all_global"]()
    torch.testing.assert_close(outputs["all_global"], stock(), atol=2e-2, rtol=2e-2)
    if problem.query_len == 1:
        calls = {name: captured(call) for name, call in calls.items()}
    results: list[dict[str, object]] = []
    for name, samples in time_interleaved(calls, repeats).items():
        share = CLASSES.get(name, 1.0)
        low, median, high = statistics.quantiles(samples, n=4)
        flops = (
            4.0 * problem.head_size * problem.query_heads * problem.requests * visible_pairs(problem, share)
        )
        kv_bytes = 4.0 * problem.head_size * problem.kv_heads * problem.requests * read_keys(problem, share)
        results.append(
            {
                "problem": asdict(problem),
                "call": name,
                "milliseconds": {"median": median, "quartiles": [low, high], "samples": samples},
                "tflops": flops / median / 1e9,
                "kv_gigabytes_per_second": kv_bytes / median / 1e6,
            }
        )
    return results


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device; this benchmark measures nothing else")
    results = [row for problem in PROBLEMS for row in measure(problem, arguments.repeats)]
    machine = {**describe_machine(), "gpu": torch.cuda.get_device_name()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(
        json.dumps({"machine": machine, "repeats": arguments.repeats, "results": results}, indent=1),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
