"""What `redknot bench` starts in place of vLLM: a server and a client that answer at once, and misbehave on demand.

The server misbehaves by flags, the client by the prompt length it is asked for.
"""

import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MISSING_MODULE, FAILED_REQUESTS, ASLEEP, NEVER_TOGETHER, NO_RESULT = 113, 114, 115, 116, 117
"""Prompt lengths at which the client does so."""


ROWS = {
    ("attention", "computed"): 90,
    ("attention", "skipped"): 10,
    ("ffn", "computed"): 60,
    ("ffn", "skipped"): 40,
}
"""What a server that skips rows has counted in each of two layers."""
METRICS = "".join(
    f'vllm:redknot_prefill_rows_total{{kind="{kind}",layer="{layer}",outcome="{outcome}"}} {count}.0\n'
    for (kind, outcome), count in ROWS.items()
    for layer in range(2)
)


class Handler(BaseHTTPRequestHandler):
    """Healthy, and a completion for any question."""

    metrics = "# HELP something_else\n"

    def answer(self, text: str = "{}") -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        self.answer(self.metrics if self.path == "/metrics" else "{}")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        del format, args


def serve(arguments: list[str]) -> None:
    """`vllm serve`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--attention-backend", default="stock")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--additional-config", type=json.loads, default={})
    parser.add_argument("--diary", type=Path)
    parser.add_argument("--die", action="store_true")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--port-taken-once", type=Path)
    given, _ = parser.parse_known_args(arguments)
    assert given.host == "127.0.0.1"
    settings = given.additional_config.get("redknot", {})
    if isinstance(settings.get("rows"), dict):
        Handler.metrics += METRICS
    if given.diary:
        with given.diary.open("a") as diary:
            diary.write(f"{given.attention_backend} {os.getpid()} {json.dumps(settings)}\n")
    if given.die:
        print("\n".join(f"line {number}" for number in range(100)), "\n\x1b[31mout of luck", sep="")
        raise SystemExit(3)
    if given.never_ready:
        time.sleep(600)
    if given.port_taken_once and not given.port_taken_once.exists():
        given.port_taken_once.touch()
        raise OSError(98, "Address already in use")
    most = "8.00" if given.attention_backend == "stock" else "20.00"
    print(
        f"KV cache size: 9,999 tokens, Maximum concurrency for {given.max_model_len:,} tokens per request: {most}x"
    )
    sys.stdout.flush()
    ThreadingHTTPServer((given.host, given.port), Handler).serve_forever()


def bench(arguments: list[str]) -> None:
    """`vllm bench serve`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", required=True, type=int)
    for flag in ("--random-input-len", "--random-output-len", "--num-prompts", "--max-concurrency"):
        parser.add_argument(flag, required=True, type=int)
    parser.add_argument("--result-dir", required=True, type=Path)
    parser.add_argument("--result-filename", required=True)
    given, _ = parser.parse_known_args(arguments)
    length, count, answer = given.random_input_len, given.num_prompts, given.random_output_len
    if length == MISSING_MODULE:
        print("ModuleNotFoundError: No module named 'pandas'")
        raise SystemExit(1)
    if length == ASLEEP:
        time.sleep(600)
    if length == NO_RESULT:
        (given.result_dir / given.result_filename).write_text('{"completed": "all"}')
        return
    together = length != NEVER_TOGETHER
    failed = 1 if length == FAILED_REQUESTS else 0
    result = {
        "completed": count - failed,
        "total_token_throughput": 1000.0,
        "start_times": [0.0 if together else 100.0 * index for index in range(count)],
        "ttfts": [0.5 + 0.25 * index for index in range(count)],
        "itls": [[0.02] * (answer - 1)] * count,
        "errors": ["Traceback\nConnectionError: gone"] * failed + [""] * (count - failed),
        "something_new": None,
    }
    (given.result_dir / given.result_filename).write_text(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2:])
    else:
        assert sys.argv[1:3] == ["bench", "serve"]
        bench(sys.argv[3:])
