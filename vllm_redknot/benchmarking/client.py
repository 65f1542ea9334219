"""vLLM's own client, `vllm bench serve`, against one server."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.request
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vllm_redknot.benchmarking.errors import BenchmarkError
from vllm_redknot.benchmarking.figures import ClientResult, parse_result
from vllm_redknot.benchmarking.server import VLLM, Server, last_lines, start, stop
from vllm_redknot.benchmarking.store import RowCount
from vllm_redknot.benchmarking.workloads import Workload

ROWS: Final = re.compile(
    r"^vllm:redknot_prefill_rows_total\{(?P<labels>[^}]*)\} (?P<value>[0-9.e+]+)$", re.MULTILINE
)
LABEL: Final = re.compile(r'(\w+)="(\w+)"')
# A proxy of the environment is no way to this machine.
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
CLIENT_SECONDS: Final = 4 * 3600.0
WARM_UP: Final = "One request wakes what a server builds lazily. " * 8
MISSING: Final = ("No module named", "vllm[bench]")


def warm_up(server: Server, model: Path) -> None:
    """One small request that is not measured. Raises BenchmarkError."""
    body = {"model": str(model), "prompt": WARM_UP, "max_tokens": 4, "temperature": 0.0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{server.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with _DIRECT.open(request, timeout=600.0) as answer:
            answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise BenchmarkError(
            f"the server refused a first request: {error}", last_lines(server.log)
        ) from error


def row_counts(server: Server) -> dict[str, RowCount]:
    """What the server counts among its metrics of rows, summed over layers, by kind; nothing if it skips none.

    Raises:
        BenchmarkError: It has no metrics.
    """
    try:
        with _DIRECT.open(f"{server.url}/metrics", timeout=60.0) as answer:
            text = answer.read().decode("utf-8", errors="replace")
    except (urllib.error.URLError, OSError) as error:
        raise BenchmarkError(f"the server has no metrics: {error}", last_lines(server.log)) from error
    counts: dict[tuple[str, str], float] = defaultdict(float)
    for found in ROWS.finditer(text):
        labels = dict(LABEL.findall(found["labels"]))
        counts[labels["kind"], labels["outcome"]] += float(found["value"])
    return {
        kind: RowCount(computed=counts[kind, "computed"], skipped=counts[kind, "skipped"])
        for kind in sorted({kind for kind, _ in counts})
    }


def client_flags(server: Server, model: Path, workload: Workload, seed: int, result: Path) -> list[str]:
    """Arguments of `vllm bench serve`; greedy, answers of exactly the length asked for, details of each request."""
    return [
        *("bench", "serve", "--base-url", server.url, "--model", str(model)),
        *("--dataset-name", "random", "--seed", str(seed), "--temperature", "0"),
        *(
            "--random-input-len",
            str(workload.prompt_tokens),
            "--random-output-len",
            str(workload.answer_tokens),
        ),
        *("--num-prompts", str(workload.requests), "--max-concurrency", str(workload.at_once)),
        *("--save-result", "--save-detailed", "--disable-tqdm"),
        *("--result-dir", str(result.parent), "--result-filename", result.name),
    ]


def prompt_seed(workload: Workload, round_number: int) -> int:
    """Both sides get the same prompts, and no prompt comes twice to one server, whose prefix cache would know it."""
    return zlib.crc32(f"{workload.key} {round_number}".encode()) % 2**31


def ask(
    server: Server,
    model: Path,
    workload: Workload,
    seed: int,
    folder: Path,
    command: Sequence[str] = VLLM,
) -> ClientResult:
    """Run the client on one workload; its output and result are files in `folder`, which are replaced.

    Raises:
        BenchmarkError: the client failed; holds the end of its output.
    """
    result, log = folder / "client.json", folder / "client.log"
    result.unlink(missing_ok=True)
    process = start([*command, *client_flags(server, model, workload, seed, result)], log)
    try:
        process.wait(CLIENT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{workload.described}: no result after {CLIENT_SECONDS:.0f} s") from error
    finally:
        stop(process)
    if process.returncode or not result.is_file():
        lines = last_lines(log)
        missing = any(word in line for word in MISSING for line in lines)
        remedy = "pip install 'vllm[bench]' has what it misses" if missing else "its last lines are above"
        raise BenchmarkError(
            f"{workload.described}: `vllm bench serve` ended with status {process.returncode}: {remedy}",
            lines,
        )
    return parse_result(result.read_text(encoding="utf-8"))
