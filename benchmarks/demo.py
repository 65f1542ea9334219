"""Ask stock vLLM and vLLM with REDKNOT one long-context question through the real OpenAI server, and compare.

Each server answers the same needle question (vllm_redknot/evals/needle.py), as a completion and as a chat. Time to
first token is that of the completion, streamed; every request has its own cache salt, so no prefix is cached.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from openai import OpenAI
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.server import ServerError, serving
from tools.smollm2_folder import default_folder, problems
from vllm_redknot.evals.needle import NeedlePrompt, needle_prompt

ANSWER_TOKENS = 8
CHAT_TOKENS = 24
STOCK, REDKNOT = "CPU_ATTN", "REDKNOT"
WINDOW_HELP = (
    "tokens a local head of REDKNOT looks back, or 'profile': what the bundled profile gives each head"
)


@dataclass(frozen=True)
class Outcome:
    """One server's answers and what vLLM says its KV pool holds."""

    backend: str
    answer: str
    right: bool
    chat_answer: str
    chat_right: bool
    prompt_tokens: int
    ttft_seconds: list[float]
    kv_pool_bytes: int
    kv_bytes_per_request: int
    max_concurrency: float


def timed_completion(client: OpenAI, model: str, prompt: str) -> tuple[str, float, int]:
    """Greedy text, seconds to the first streamed token, and the prompt's length in tokens."""
    started = time.perf_counter()
    stream = client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=ANSWER_TOKENS,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"cache_salt": uuid.uuid4().hex},
    )
    first: float | None = None
    text, prompt_tokens = "", 0
    for chunk in stream:
        if chunk.usage is not None:
            prompt_tokens = chunk.usage.prompt_tokens
        for choice in chunk.choices:
            first = first if first is not None else time.perf_counter() - started
            text += choice.text
    if first is None:
        raise ServerError("the server closed the stream without a token")
    return text, first, prompt_tokens


def chat(client: OpenAI, model: str, question: str) -> str:
    """Greedy answer to one user message."""
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=CHAT_TOKENS,
        temperature=0.0,
        stream=True,
        extra_body={"cache_salt": uuid.uuid4().hex},
    )
    return "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)


def measure(backend: str, arguments: argparse.Namespace, prompt: NeedlePrompt, log: Path) -> Outcome:
    """Start a server with one attention backend and ask it; see `benchmarks.server.serving` for what is raised."""
    model: Path = arguments.model_folder
    flags = [
        *("--attention-backend", backend),
        "--enforce-eager",
        *("--max-model-len", str(arguments.max_model_len)),
        *("--max-num-batched-tokens", str(arguments.max_num_batched_tokens)),
        *("--block-size", str(arguments.block_size)),
        *("--kv-cache-memory-bytes", str(arguments.kv_cache_memory_bytes)),
    ]
    if backend == REDKNOT and arguments.window is not None:
        flags += ["--additional-config", json.dumps({"redknot": {"window": arguments.window}})]
    with serving(model, flags, log, arguments.timeout) as server:
        client = OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=arguments.timeout)
        timed_completion(client, str(model), "One, two, three,")
        samples = [timed_completion(client, str(model), prompt.completion) for _ in range(arguments.repeats)]
        chat_answer = chat(client, str(model), prompt.question).strip()
        capacity = server.capacity()
    answer = samples[0][0].strip()
    return Outcome(
        backend=backend,
        answer=answer,
        right=prompt.is_answered_by(answer),
        chat_answer=chat_answer,
        chat_right=prompt.is_answered_by(chat_answer),
        prompt_tokens=samples[0][2],
        ttft_seconds=[seconds for _, seconds, _ in samples],
        kv_pool_bytes=arguments.kv_cache_memory_bytes,
        kv_bytes_per_request=round(arguments.kv_cache_memory_bytes / capacity.max_concurrency),
        max_concurrency=capacity.max_concurrency,
    )


def table(outcomes: list[Outcome], prompt: NeedlePrompt, max_model_len: int, window: int | None) -> Table:
    """The outcomes side by side."""

    def verdict(answer: str, right: bool) -> str:
        return f"{escape(repr(answer))} ({'right' if right else 'wrong'})"

    shown = Table(title=f"passcode {prompt.passcode} in {outcomes[0].prompt_tokens:,} tokens")
    shown.add_column("")
    for outcome in outcomes:
        setting = f" (window {window})" if outcome.backend == REDKNOT and window is not None else ""
        shown.add_column(f"stock {STOCK}" if outcome.backend == STOCK else outcome.backend + setting)
    shown.add_row("completion", *(verdict(one.answer, one.right) for one in outcomes))
    shown.add_row("chat", *(verdict(one.chat_answer, one.chat_right) for one in outcomes))
    shown.add_row(
        "time to first token", *(f"{statistics.median(one.ttft_seconds):.2f} s" for one in outcomes)
    )
    shown.add_row(
        f"KV memory per request of {max_model_len:,} tokens",
        *(f"{one.kv_bytes_per_request / 2**20:.1f} MiB" for one in outcomes),
    )
    shown.add_row("maximum concurrency (vLLM)", *(f"{one.max_concurrency:.2f}x" for one in outcomes))
    return shown


def window_or_profile(text: str) -> int | None:
    """A window in tokens, or None for the profile's own."""
    return None if text == "profile" else int(text)


def parse_arguments() -> argparse.Namespace:
    """Arguments; the defaults are the documented demo."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--model-folder", type=Path, default=default_folder(), help="folder of the test model"
    )
    parser.add_argument(
        "--backends", nargs="+", default=[STOCK, REDKNOT], help="attention backends to compare"
    )
    parser.add_argument("--window", type=window_or_profile, default=None, help=WINDOW_HELP)
    parser.add_argument("--prompt-tokens", type=int, default=4000, help="length of the question")
    parser.add_argument("--depth", type=float, default=0.5, help="where the passcode is, from 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the passcode and the choice of text")
    parser.add_argument(
        "--repeats", type=int, default=1, help="timed completions; the table shows the fastest"
    )
    parser.add_argument("--max-model-len", type=int, default=8192, help="tokens a request may have")
    parser.add_argument("--max-num-batched-tokens", type=int, default=512, help="tokens of one engine step")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of one KV block")
    parser.add_argument("--kv-cache-memory-bytes", type=int, default=2**30, help="size of the KV pool")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for a start or an answer")
    parser.add_argument("--json", type=Path, default=None, help="also write the outcome to this file")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    arguments.model_folder = arguments.model_folder.expanduser().absolute()
    if wrong := problems(arguments.model_folder):
        sys.exit("run make setup: " + "; ".join(wrong))
    # SIGTERM must unwind the stack too, or the server would outlive us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    prompt = needle_prompt(arguments.model_folder, arguments.prompt_tokens, arguments.depth, arguments.seed)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="redknot-demo-") as logs:
        for backend in arguments.backends:
            console.print(f"{backend}: starting vllm serve, then asking ...")
            try:
                outcomes.append(measure(backend, arguments, prompt, Path(logs) / f"{backend}.log"))
            except ServerError as error:
                sys.exit(f"{backend}: {error}")
    console.print(table(outcomes, prompt, arguments.max_model_len, arguments.window))
    if arguments.json is not None:
        record = {
            "machine": describe_machine(),
            "arguments": {
                name: value.name if isinstance(value, Path) else value
                for name, value in vars(arguments).items()
            },
            "passcode": prompt.passcode,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
