"""A `vllm serve` process: started on a free local port, waited for, measured by its log, and always taken down."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

HOST = "127.0.0.1"
LOG_TAIL_LINES = 30
SHUTDOWN_SECONDS = 30.0
CAPACITY = re.compile(
    r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x"
)


class ServerError(RuntimeError):
    """The server did not start, or ended early; the message holds the end of its log."""


@dataclass(frozen=True)
class Capacity:
    """vLLM's own count of what fits its KV-cache pool."""

    tokens: int
    max_model_len: int
    max_concurrency: float

    @classmethod
    def of_log(cls, log: Path) -> "Capacity":
        """The capacity line of a server's log.

        Raises:
            ServerError: the log has no such line.
        """
        found = CAPACITY.search(log.read_text(encoding="utf-8", errors="replace"))
        if found is None:
            raise ServerError(f"no KV cache size in the server's log\n{log_tail(log)}")
        tokens, max_model_len = (int(number.replace(",", "")) for number in found.groups()[:2])
        return cls(tokens, max_model_len, float(found.group(3)))


@dataclass(frozen=True)
class Server:
    """A running server that answers on `base_url`."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def base_url(self) -> str:
        """Where the OpenAI API is."""
        return f"http://{HOST}:{self.port}/v1"

    def capacity(self) -> Capacity:
        """What fits the KV-cache pool; raises ServerError where the log does not say."""
        return Capacity.of_log(self.log)


def free_port() -> int:
    """A TCP port nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def log_tail(log: Path) -> str:
    """The last lines of a log, indented."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join(f"  | {line}" for line in lines)


@contextmanager
def serving(model: Path, flags: Sequence[str], log: Path, timeout: float = 240.0) -> Iterator[Server]:
    """Run `vllm serve MODEL FLAGS` until the block is left, however it is left.

    Args:
        model: folder of the model.
        flags: further flags of `vllm serve`; host and port are set here.
        log: file for the server's output.
        timeout: seconds until the server has to be healthy.

    Raises:
        ServerError: it ended or was not healthy in time.
    """
    port = free_port()
    vllm = str(Path(sys.executable).with_name("vllm"))
    command = [vllm, "serve", str(model), "--host", HOST, "--port", str(port), *flags]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches us alone, and the whole group can be ended.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_until_healthy(process, port, log, timeout)
        yield Server(port, log, process)
    finally:
        stop(process)


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path, timeout: float) -> None:
    """Poll /health until it answers 200; see `serving` for what is raised."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(f"vllm serve ended with status {process.returncode}\n{log_tail(log)}")
        try:
            if httpx.get(f"http://{HOST}:{port}/health", timeout=2.0).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise ServerError(f"vllm serve was not healthy after {timeout:.0f} s\n{log_tail(log)}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and everything it started: politely first, then not."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(SHUTDOWN_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
