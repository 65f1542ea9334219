"""Latency and throughput of real servers, stock and REDKNOT in turns, in one run on one machine.

`python -m benchmarks.serve` writes benchmarks/results/serve_cpu.json and a plot beside it. vLLM on a CPU computes with
one thread here (it reserves a core); every figure is for that. Prompts are never repeated, so no prefix is cached.

With `--rows` the time to first token is measured for stock, head classes alone, row skipping alone and both, and a
profile of one prefill of each says where the time goes; that is benchmarks/results/rows_cpu.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from tokenizers import Tokenizer

from benchmarks.ablation import Engines, ablated, breakdowns, predicted
from benchmarks.machine import describe_machine
from benchmarks.server import serving
from tools.smollm2_folder import default_folder
from vllm_redknot.cli.options import parse_rows
from vllm_redknot.evals.texts import essays

RESULTS = Path(__file__).parent / "results"
HEADS = Path(__file__).parent / "heads" / "smollm2-needle13.json"
"""13 of 90 heads global, the others window 256 and sink 4."""
Samples = dict[str, list[float]]
"""Scenario -> one figure per repetition."""


@dataclass(frozen=True)
class Plan:
    """What is measured; see `measure` for the scenarios."""

    rounds: int
    ttft_lengths: tuple[int, ...]
    ttft_repeats: int
    short: tuple[int, int, int]  # requests, prompt tokens, answer tokens
    long: tuple[int, int, int]
    throughput: tuple[int, int, int]


FULL = Plan(1, (512, 7500), 3, (32, 64, 64), (8, 6000, 96), (32, 4000, 16))
QUICK = Plan(1, (512, 2000), 1, (8, 64, 24), (2, 1500, 24), (4, 1000, 8))


MODES = ("eager", "compiled")
SCENARIOS = ("ttft", "itl_short", "itl_long", "throughput")
POOLS = ((2**31, SCENARIOS[:3]), (2**30, SCENARIOS[3:]))
"""Bytes of KV memory and what is measured with them: latency where all fits, throughput where stock has to queue."""


class Prompts:
    """Token-id prompts of natural text; each is handed out once."""

    def __init__(self, model: Path) -> None:
        self._ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(essays()).ids
        self._next = 0

    def take(self, length: int) -> list[int]:
        """The next `length` tokens of the text; starts over, shifted, where it ends."""
        if self._next + length > len(self._ids):
            self._next = self._next % 997 + 1
        start, self._next = self._next, self._next + length
        return list(self._ids[start : start + length])


async def stream_times(client: AsyncOpenAI, model: Path, prompt: list[int], answer: int) -> list[float]:
    """When the request was sent and when each piece of its answer came, in seconds of one clock."""
    times = [time.perf_counter()]
    stream = await client.completions.create(
        model=str(model),
        prompt=prompt,
        max_tokens=answer,
        temperature=0.0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for event in stream:
        if event.choices:
            times.append(time.perf_counter())
    return times


async def crowd(
    client: AsyncOpenAI, model: Path, prompts: Sequence[list[int]], answer: int
) -> list[list[float]]:
    """All prompts at once."""
    return await asyncio.gather(*(stream_times(client, model, prompt, answer) for prompt in prompts))


def decode_gaps(streams: Sequence[Sequence[float]]) -> Iterator[float]:
    """Gaps between pieces while every request of the crowd is decoding: none where a server queues some of them."""
    begin, end = max(times[1] for times in streams), min(times[-1] for times in streams)
    for times in streams:
        for left, right in pairwise(times[1:]):
            if left >= begin and right <= end:
                yield right - left


async def measure(
    client: AsyncOpenAI, model: Path, plan: Plan, scenarios: Sequence[str], prompts: Prompts
) -> Samples:
    """One round of the scenarios against one server."""
    await stream_times(client, model, prompts.take(64), 4)
    samples: Samples = {}
    for length in plan.ttft_lengths if "ttft" in scenarios else ():
        times = [await stream_times(client, model, prompts.take(length), 1) for _ in range(plan.ttft_repeats)]
        samples[f"ttft_{length}_s"] = [row[1] - row[0] for row in times]
    for name, (requests, length, answer) in (("short", plan.short), ("long", plan.long)):
        if f"itl_{name}" not in scenarios:
            continue
        streams = await crowd(client, model, [prompts.take(length) for _ in range(requests)], answer)
        gaps = list(decode_gaps(streams))
        if not gaps:
            raise SystemExit(f"{requests} requests of {length} tokens were never decoding all at once")
        samples[f"itl_{name}_{requests}x{length}_s"] = [statistics.median(gaps)]
    if "throughput" not in scenarios:
        return samples
    requests, length, answer = plan.throughput
    started = time.perf_counter()
    await crowd(client, model, [prompts.take(length) for _ in range(requests)], answer)
    seconds = time.perf_counter() - started
    samples[f"throughput_{requests}x{length}_tokens_per_s"] = [requests * (length + answer) / seconds]
    return samples


async def against(url: str, model: Path, plan: Plan, scenarios: Sequence[str], prompts: Prompts) -> Samples:
    """`measure` with a client of its own."""
    async with AsyncOpenAI(base_url=url, api_key="none", timeout=3600, max_retries=0) as client:
        return await measure(client, model, plan, scenarios, prompts)


def run(
    model: Path, engines: Engines, plan: Plan, scenarios: Sequence[str], compiled: bool
) -> dict[str, Samples]:
    """Stock and REDKNOT servers in turns; samples of all rounds."""
    prompts = Prompts(model)
    merged: dict[str, Samples] = {name: {} for name in engines}
    turns = ((pool, *engine) for pool in POOLS for _ in range(plan.rounds) for engine in engines.items())
    for (kv_bytes, measurable), name, redknot in turns:
        wanted = [scenario for scenario in scenarios if scenario in measurable]
        if not wanted:
            continue
        flags = [
            *("--attention-backend", "CPU_ATTN" if redknot is None else "REDKNOT"),
            *("--max-model-len", "8192", "--block-size", "32"),
            *("--kv-cache-memory-bytes", str(kv_bytes)),
            *([] if compiled else ["--enforce-eager"]),
        ]
        if redknot:
            flags += ["--additional-config", json.dumps({"redknot": redknot})]
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(model, flags, Path(folder) / "log", timeout=600) as server,
        ):
            found = asyncio.run(against(server.base_url, model, plan, wanted, prompts))
            for key, values in found.items():
                merged[name].setdefault(key, []).extend(values)
    return merged


def ratios(samples: dict[str, Samples], engine: str = "redknot") -> dict[str, float]:
    """Per scenario, how many times better an engine is than stock: above 1 is better."""
    result = {}
    for key in samples["stock"]:
        stock, ours = (statistics.median(samples[name][key]) for name in ("stock", engine))
        result[key] = ours / stock if key.endswith("tokens_per_s") else stock / ours
    return result


def run_ablation(
    model: Path, heads: Path | None, rows: dict[str, Any], plan: Plan, compiled: bool
) -> dict[str, Any]:
    """Times to first token of stock, heads, rows and both, beside what arithmetic predicts, and where time goes."""
    engines = ablated(model, heads, rows)
    samples = run(model, engines, plan, SCENARIOS[:1], compiled)
    # The modules of a compiled model run as one graph: only an eager one can be taken apart.
    parts = breakdowns(model, engines, plan.ttft_lengths[-1])
    return {
        "rows": rows,
        "samples": samples,
        "times_better_than_stock": {name: ratios(samples, name) for name in engines},
        "predicted": predicted(model, heads, rows, plan.ttft_lengths, parts["both"]),
        "breakdown": parts,
    }


def plot(modes: dict[str, dict[str, Samples]], path: Path) -> None:
    """Bars of the ratios."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    names: list[str] = []
    for index, (mode, samples) in enumerate(modes.items()):
        values = ratios(samples)
        names = list(values)
        axes.barh(
            [row + 0.4 * index for row in range(len(names))], list(values.values()), height=0.38, label=mode
        )
    axes.set_yticks(range(len(names)), names)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("times better than stock vLLM")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-folder", type=Path, default=default_folder(), help="folder of the model")
    parser.add_argument("--quick", action="store_true", help="small prompts, one round")
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=MODES[:1],
        help="eager, compiled with torch.compile, or both",
    )
    parser.add_argument("--output", type=Path, help="result file; benchmarks/results/{serve,rows}_cpu.json")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="what to measure")
    parser.add_argument("--heads", type=Path, default=HEADS, help="head-class file")
    parser.add_argument("--bundled", action="store_true", help="the bundled profile instead")
    parser.add_argument(
        "--rows", type=parse_rows, help="measure the ablation with this schedule of rows: JSON, or a file"
    )
    parser.add_argument("--rounds", type=int, help="servers of each kind that take turns; without it one")
    arguments = parser.parse_args()
    heads = None if arguments.bundled else arguments.heads
    plan = QUICK if arguments.quick else FULL
    plan = replace(plan, rounds=arguments.rounds or plan.rounds)
    output: Path = arguments.output or RESULTS / f"{'rows' if arguments.rows else 'serve'}_cpu.json"
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "threads": 1,
        "heads": "bundled profile" if heads is None else heads.name,
        "plan": plan.__dict__,
    }
    if arguments.rows:
        (mode,) = arguments.modes
        found = run_ablation(arguments.model_folder, heads, arguments.rows, plan, mode == "compiled")
        document |= {"mode": mode, **found}
    else:
        engines: Engines = {"stock": None, "redknot": {} if heads is None else {"heads": str(heads)}}
        modes = {
            mode: run(arguments.model_folder, engines, plan, arguments.only, compiled=mode == "compiled")
            for mode in arguments.modes
        }
        document |= {
            "scenarios": list(arguments.only),
            "samples": modes,
            "times_better_than_stock": {mode: ratios(samples) for mode, samples in modes.items()},
        }
        plot(modes, output.with_suffix(".png"))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document["times_better_than_stock"], indent=2))


if __name__ == "__main__":
    main()
