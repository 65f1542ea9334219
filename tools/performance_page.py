"""Writes the CPU section of docs/performance.md from the files in benchmarks/results.

python -m tools.performance_page
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from vllm_redknot.rows.schedule import RowSchedule

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"
PAGE: Final = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- cpu -->", "<!-- /cpu -->"
MIB, GIB = 2**20, 2**30


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table and an empty line."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def attention(document: dict[str, Any]) -> Iterator[str]:
    """Kernels beside stock's operator."""
    yield "### Kernels against stock vLLM's CPU operator"
    threads = document["threads"]
    yield (
        f"`attention_cpu.json`: {threads} thread, interleaved calls, cold caches, medians of"
        f" {document['arguments']['repeats']}. Stock computes all heads as global. A copy"
        " reads and writes: it moves each byte twice."
    )
    yield ""
    rows = []
    for result in document["results"]:
        problem, quartiles, note = result["problem"], result["quartiles"], ""
        if "gflops" in result:
            note = "{ours:.0f} against {stock:.0f} GFLOP/s".format(**result["gflops"])
        if "gigabytes_per_second" in result and result["global_heads"]:
            read, copied = result["gigabytes_per_second"]["ours"], result["copy_gigabytes_per_second"]
            note = f"reads {read:.1f} GB/s; a copy reads {copied / 2:.1f} and writes as much"
        if "times_short_context" in result:
            note = f"{result['times_short_context']:.2f} times its time at 1,024 tokens"
        name = f"{problem['name']}, {problem['heads']}/{problem['kv_heads']} x {problem['head_size']}"
        times = [f"{quartiles[who][1] * 1e3:.2f}" for who in ("ours", "stock")]
        rows.append([name, *times, f"{result['speedup']:.2f}", note])
    yield from table(["problem", "ms, ours", "ms, stock", "times faster", ""], rows)


def serving(document: dict[str, Any]) -> Iterator[str]:
    """Real servers, by mode."""
    yield "### Real servers"
    yield (
        f"`serve_cpu.json`, `serve_cpu_compiled.json`: SmolLM2-135M, {document['heads']} (needle13: 13 of 90 heads"
        " global, window 256); real OpenAI servers one after the other, medians. `ttft`: one client, prompt length."
        " `itl`: time between tokens while all requests decode. Throughput: prompt and answer tokens with 1 GiB of KV"
        " memory."
    )
    yield ""
    rows = []
    compiled = RESULTS / "serve_cpu_compiled.json"
    runs = [document, *([json.loads(compiled.read_text(encoding="utf-8"))] if compiled.is_file() else [])]
    for measured in runs:
        for mode, samples in measured["samples"].items():
            for key, times in measured["times_better_than_stock"][mode].items():
                stock, ours = (statistics.median(samples[who][key]) for who in ("stock", "redknot"))
                rows.append([mode, key, f"{stock:.3f}", f"{ours:.3f}", f"{times:.2f}"])
    yield from table(["", "", "stock", "REDKNOT", "times better"], rows)


def demo(document: dict[str, Any]) -> Iterator[str]:
    """`make demo`."""
    yield "### The demo"
    yield "`demo.json`: one needle question in about 4,000 tokens."
    yield ""
    shown: dict[str, Any] = {
        "right, completion and chat": lambda side: f"{side['right']}, {side['chat_right']}",
        "time to first token": lambda side: f"{statistics.median(side['ttft_seconds']):.2f} s",
        "KV bytes of an 8K request": lambda side: f"{side['kv_bytes_per_request'] / MIB:.1f} MiB",
        "maximum concurrency in 1 GiB": lambda side: f"{side['max_concurrency']:.2f}",
    }
    sides = document["outcomes"] if "outcomes" in document else document["results"]
    rows = [[name, *(show(side) for side in sides)] for name, show in shown.items()]
    yield from table(["", "stock", "REDKNOT"], rows)


def memory(document: dict[str, Any]) -> Iterator[str]:
    """What fits."""
    yield "### Memory"
    yield (
        "`memory.json`: vLLM's own \"maximum concurrency\" for SmolLM2 at 8K in 1 GiB, and vLLM's own planning"
        " for large models with published head files (8,192 tokens in flight, pages of 16)."
    )
    yield ""
    small = document["smollm2_8k_in_1_gib"]
    stock, ours = (small[who]["kv_bytes_per_request"] / MIB for who in ("stock", "redknot"))
    rows = [
        [
            "SmolLM2-135M, 8K (bundled profile)",
            f"{stock:.0f} MiB",
            f"{ours:.1f} MiB",
            "",
            f"{small['times_stock']:.2f}",
        ]
    ]
    for row in document["large_models"]:
        sizes = [f"{row[key] / GIB:.2f} GiB" for key in ("dense_bytes", "vllm_bytes", "closed_form_bytes")]
        name = f"{row['model']}, {row['context'] // 1024}K"
        rows.append([name, *sizes, f"{row['times_dense_concurrency']:.2f}"])
    yield from table(["model, context", "dense", "REDKNOT", "closed form", "times as many requests"], rows)


def quality(document: dict[str, Any]) -> Iterator[str]:
    """What the bundled profile costs."""
    yield "### Quality of the bundled profile"
    yield (
        "`quality.json`: greedy completions beside stock vLLM on the same token ids: answers found, and NLL of the"
        " answer in brackets."
    )
    yield ""
    summary = document["summary"]
    tasks = list(next(iter(summary.values())))
    rows = [
        [who, *(f"{row[t]['found']:.0f}/{row[t]['n']:.0f} ({row[t]['mean_nll']:.2f})" for t in tasks)]
        for who, row in summary.items()
    ]
    yield from table(["", *tasks], rows)


def overhead(document: dict[str, Any]) -> Iterator[str]:
    """Python of the plugin."""
    yield "### What the plugin adds to a step"
    yield (
        "`overhead.json`, medians in microseconds: a layer's two kernel calls on one decode token, and the tables of"
        " all KV-cache groups, once per step."
    )
    yield ""
    yield from table(["", "us"], [[name, str(value)] for name, value in document["median_us"].items()])


def rows(document: dict[str, Any]) -> Iterator[str]:
    """Heads and row skipping, each alone and both; then where the time of one prefill goes."""
    yield "### Row skipping: the ablation"
    yield from _ablation(document, "rows_cpu.json")


def rows_with_predictors(document: dict[str, Any]) -> Iterator[str]:
    """The same of a schedule with predictors."""
    yield "### Row skipping with predictors"
    yield from _ablation(document, "rows_cpu_predictors.json")


def _ablation(document: dict[str, Any], name: str) -> Iterator[str]:
    schedule = RowSchedule.parse(document["rows"]).describe()
    yield (
        f"`{name}`: SmolLM2-135M, {document['heads']}, {schedule}; {document['mode']}."
        " Real OpenAI servers one after the other, medians of the time to first token of one client; FLOPs by the"
        " published accounting (`redknot plan`)."
    )
    yield ""
    samples, predicted = document["samples"], document["predicted"]
    lines = []
    for length in document["plan"]["ttft_lengths"]:
        key = f"ttft_{length}_s"
        flops = predicted["flops"][str(length)]
        for name, times in document["times_better_than_stock"].items():
            line = [str(length), name, f"{statistics.median(samples[name][key]):.3f}", f"{times[key]:.2f}"]
            lines.append([*line, f"{flops['stock']['total'] / flops[name]['total']:.2f}"])
    head = ["prompt", "", "seconds to first token", "times better", "times fewer FLOPs"]
    yield from table(head, lines)
    for length, skipped in predicted["rows_skipped"].items():
        shares = f"{skipped['attention']:.1%} of all attention rows and {skipped['ffn']:.1%} of all FFN rows"
        yield f"- {length} tokens: {shares} skipped. {_saved_by_rows(document, length)}"
    yield ""
    breakdown = document["breakdown"]
    tokens = next(iter(breakdown.values()))["tokens"]
    yield (
        f"Where one prefill of {tokens} tokens spends its time, eager, in the engine's own process on both cores"
        " (a server has one thread to compute):"
        " seconds by kind of module, each without the modules inside of it."
    )
    yield ""
    kinds = dict.fromkeys(kind for found in breakdown.values() for kind in found["seconds"])
    lines = [
        [kind, *(f"{found['seconds'].get(kind, 0.0):.2f}" for found in breakdown.values())] for kind in kinds
    ]
    lines.append(["all", *(f"{found['total']:.2f}" for found in breakdown.values())])
    yield from table(["", *breakdown], lines)


def _saved_by_rows(document: dict[str, Any], length: str) -> str:
    """Of what the head classes leave: the share of the time that skipping rows saves, beside that of the FLOPs."""
    heads, both = (
        statistics.median(document["samples"][name][f"ttft_{length}_s"]) for name in ("heads", "both")
    )
    flops = document["predicted"]["flops"][length]
    time, work = 1 - both / heads, 1 - flops["both"]["total"] / flops["heads"]["total"]
    return f"Of what head classes leave that saves {work:.1%} of the FLOPs and {time:.1%} of the time."


SECTIONS: Final = {
    "attention_cpu.json": attention,
    "serve_cpu.json": serving,
    "rows_cpu.json": rows,
    "rows_cpu_predictors.json": rows_with_predictors,
    "demo.json": demo,
    "memory.json": memory,
    "quality.json": quality,
    "overhead.json": overhead,
}


def section() -> str:
    """The text between the markers, of the result files that are there."""
    lines = [
        "## CPUs",
        "",
        "Two Zen 4 cores with AVX-512 BF16 and no AMX; one compute thread, as vLLM uses there; bf16.",
        "",
    ]
    for name, render in SECTIONS.items():
        path = RESULTS / name
        if path.is_file():
            lines += render(json.loads(path.read_text(encoding="utf-8")))
    return "\n".join([BEGIN, *lines]).rstrip() + f"\n{END}"


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + section() + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
