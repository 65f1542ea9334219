"""KV reuse beside stock vLLM with prefix caching: time to first token, a trace of requests, and the trace under faults.

`python -m benchmarks.reuse` takes the time to first token of prompts of four stored documents in changing order;
`--trace` draws documents by popularity from several clients; `--trace --faults N` damages the store meanwhile and
compares every answer. Results go to benchmarks/results/reuse_cpu.json, each into its part of it. vLLM on a CPU
computes with one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.reuse_client import Client
from benchmarks.reuse_trace import Trace, draw_trace
from benchmarks.reuse_trace_runs import OURS, STOCK, faulty, timed_trace
from benchmarks.serve import HEADS, RESULTS, Prompts
from benchmarks.server import Server, serving
from tools.smollm2_folder import default_folder


@dataclass(frozen=True)
class Sizes:
    """How much is asked. Tokens, counts, and GiB of host memory for segments while there are faults."""

    document_tokens: int = 1800
    documents: int = 4
    repeats: int = 6
    trace_documents: int = 50
    trace_tokens: int = 450
    requests: int = 200
    clients: int = 8
    answer_tokens: int = 8
    memory_gib: float = 0.3


START_S = 1800.0
"""A server's time to start: on a busy machine two of them take long."""
QUICK = Sizes(300, 4, 2, 10, 150, 16, 4, 4, 0.04)


@contextmanager
def server_of(
    side: str, model: Path, heads: Path | None, settings: dict[str, Any], flags: Sequence[str] = ()
) -> Iterator[tuple[Server, Path]]:
    """A server of one side, and the directory of its store, both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="redknot-reuse-") as folder:
        store = Path(folder) / "store"
        shared = [
            *("--max-model-len", "8192", "--block-size", "32", "--kv-cache-memory-bytes", str(2**30)),
            *("--enforce-eager", "--enable-prompt-tokens-details", *flags),
        ]
        if side == STOCK:
            shared += ["--attention-backend", "CPU_ATTN"]
        else:
            section = {"reuse": "force", "store": str(store), **settings}
            section |= {} if heads is None else {"heads": str(heads)}
            shared += [
                "--attention-backend",
                "REDKNOT",
                "--additional-config",
                json.dumps({"redknot": section}),
            ]
        with serving(model, shared, Path(folder) / "log", timeout=START_S) as server:
            yield server, store


async def first_tokens(
    servers: dict[str, Server], model: Path, documents: Sequence[list[int]], prompts: Prompts, repeats: int
) -> dict[str, Any]:
    """Seconds to the first token of documents in changing order and a question, the servers in turns.

    Both servers have computed each document alone before: one has it in its store, the other in its prefix cache, where
    a prompt that begins with it finds it.
    """
    generator, clients = random.Random(0), {side: Client(server, model) for side, server in servers.items()}
    samples: dict[str, list[dict[str, float]]] = {side: [] for side in servers}
    for client in clients.values():
        await client.store(documents)
        await client.timed(prompts.take(64))
    for number in range(repeats):
        order = generator.sample(range(len(documents)), len(documents))
        chosen = [documents[place] for place in order]
        prompt = [*(token for document in chosen for token in document), *prompts.take(24)]
        ends = [sum(map(len, chosen[: place + 1])) for place in range(len(chosen))]
        wish = {"spans": [list(pair) for pair in zip([0, *ends], ends, strict=False)]}
        for side in (STOCK, OURS) if number % 2 else (OURS, STOCK):
            found = await clients[side].timed(prompt, wish if side == OURS else None)
            samples[side].append({"prompt_tokens": len(prompt), **found._asdict()})
    for client in clients.values():
        await client.close()
    medians = {
        side: statistics.median(row["first_token_s"] for row in rows) for side, rows in samples.items()
    }
    return {"samples": samples, "median_s": medians, "times_sooner": medians[STOCK] / medians[OURS]}


def measure_first_tokens(model: Path, heads: Path | None, sizes: Sizes) -> dict[str, Any]:
    """Both servers at once: the one that is not asked waits, and computes nothing."""
    prompts = Prompts(model)
    documents = [prompts.take(sizes.document_tokens + 7 * place) for place in range(sizes.documents)]
    with server_of(STOCK, model, heads, {}) as (stock, _), server_of(OURS, model, heads, {}) as (ours, _):
        servers = {STOCK: stock, OURS: ours}
        return asyncio.run(first_tokens(servers, model, documents, prompts, sizes.repeats))


def measure_trace(model: Path, heads: Path | None, sizes: Sizes, trace: Trace) -> dict[str, Any]:
    """Both sides one after the other, from empty caches."""
    found = {}
    for side in (STOCK, OURS):
        with server_of(side, model, heads, {}) as (server, _):
            found[side] = asyncio.run(
                timed_trace(server, side, model, trace, sizes.clients, sizes.answer_tokens)
            )
    return found


def measure_faults(
    model: Path, heads: Path | None, sizes: Sizes, trace: Trace, faults: int, seed: int
) -> dict[str, Any]:
    """A server whose store is damaged, and one without faults and a store of its own to compare with."""
    # The prefix cache would answer for a document whose segment is damaged; fp32 tells rounding from mistakes.
    flags = ["--dtype", "float32", "--no-enable-prefix-caching"]
    little = {"store_memory_gib": sizes.memory_gib}
    with (
        server_of(OURS, model, heads, little, flags) as (damaged, store),
        server_of(OURS, model, heads, {}, flags) as (sound, _),
    ):
        return asyncio.run(
            faulty(damaged, sound, store, model, trace, sizes.clients, sizes.answer_tokens, faults, seed)
        )


def write_part(path: Path, part: str, document: dict[str, Any]) -> None:
    """Replace one part of the result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    whole[part] = {"machine": describe_machine(), "threads": 1, **document}
    path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Command line. Exit status 1 where an answer is wrong, or something is not given back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-folder", type=Path, default=default_folder(), help="folder of the model")
    parser.add_argument("--heads", type=Path, default=HEADS, help="head-class file")
    parser.add_argument("--bundled", action="store_true", help="the bundled profile instead")
    parser.add_argument("--quick", action="store_true", help="short documents, few requests")
    parser.add_argument("--trace", action="store_true", help="the trace, not the time to first token")
    parser.add_argument("--faults", type=int, default=0, metavar="N", help="make N faults during the trace")
    parser.add_argument("--seed", type=int, default=0, help="draws the trace and the faults")
    parser.add_argument("--output", type=Path, default=RESULTS / "reuse_cpu.json", help="result file")
    for name, kind in Sizes.__annotations__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float if kind == "float" else int, dest=name)
    arguments = parser.parse_args()
    given = {name: value for name in Sizes.__annotations__ if (value := getattr(arguments, name)) is not None}
    sizes = replace(QUICK if arguments.quick else Sizes(), **given)
    model, heads = arguments.model_folder, None if arguments.bundled else arguments.heads
    about = {"heads": "bundled profile" if heads is None else heads.name, "sizes": asdict(sizes)}
    if not arguments.trace:
        part, found = "first_token", measure_first_tokens(model, heads, sizes)
        shown = {key: value for key, value in found.items() if key != "samples"}
    else:
        trace = draw_trace(
            Prompts(model).take, sizes.trace_documents, sizes.trace_tokens, sizes.requests, 4, arguments.seed
        )
        if arguments.faults:
            part = "faults"
            found = measure_faults(model, heads, sizes, trace, arguments.faults, arguments.seed)
            shown = {key: value for key, value in found.items() if key != "differences"}
        else:
            part, found = "trace", measure_trace(model, heads, sizes, trace)
            shown = {
                side: {key: value for key, value in rows.items() if key != "first_token_s"}
                for side, rows in found.items()
            }
    write_part(arguments.output, part, {**about, **found})
    print(json.dumps(shown, indent=1))
    raise SystemExit(0 if found.get("passed", True) else 1)


if __name__ == "__main__":
    main()
