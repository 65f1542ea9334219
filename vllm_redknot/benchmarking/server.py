"""A `vllm serve` process: started on a free local port, waited for, read by its log, and always taken down."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vllm_redknot.benchmarking.errors import BenchmarkError

HOST: Final = "127.0.0.1"
VLLM: Final = (sys.executable, "-m", "vllm.entrypoints.cli.main")
"""The `vllm` command of this interpreter's environment."""
LAST_LINES: Final = 20
LOG_BYTES: Final = 64 * 1024
SHUTDOWN_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.1
ATTEMPTS: Final = 3
PORT_TAKEN: Final = "address already in use"
CAPACITY: Final = re.compile(
    r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x"
)
# A proxy of the environment is no way to this machine.
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Capacity:
    """vLLM's own count of what fits its KV cache."""

    tokens: int
    max_model_len: int
    max_concurrency: float

    @classmethod
    def of_log(cls, log: Path) -> Capacity:
        """The capacity line of a server's log. Raises BenchmarkError where there is none."""
        found = CAPACITY.search(log.read_text(encoding="utf-8", errors="replace"))
        if found is None:
            raise BenchmarkError(
                f"{log}: vLLM did not say what fits its KV cache",
                last_lines(log),
                "this release knows the log of vLLM 0.32",
            )
        tokens, max_model_len = (int(number.replace(",", "")) for number in found.groups()[:2])
        return cls(tokens, max_model_len, float(found.group(3)))


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Where it answers; the OpenAI API is below /v1."""
        return f"http://{HOST}:{self.port}"


def last_lines(log: Path) -> list[str]:
    """The last lines of a log, however long it is; nothing where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()[-LAST_LINES:]


def free_port() -> int:
    """A TCP port of the loopback address nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(
    model: Path, flags: Sequence[str], log: Path, timeout: float, command: Sequence[str] = VLLM
) -> Iterator[Server]:
    """Run `vllm serve MODEL FLAGS` until the block is left, however it is left.

    Args:
        model: folder of the model.
        flags: further flags of `vllm serve`; host and port are set here.
        log: file for the server's output.
        timeout: seconds until the server has to be healthy.
        command: what to run in place of `vllm`.

    Raises:
        BenchmarkError: it ended or was not healthy in time; holds the end of its log.
    """
    for attempt in range(1, ATTEMPTS + 1):
        port = free_port()
        process = start([*command, "serve", str(model), "--host", HOST, "--port", str(port), *flags], log)
        try:
            try:
                wait_until_healthy(process, f"http://{HOST}:{port}/health", log, timeout)
            except BenchmarkError as error:
                # Somebody took the port between our look and the server's.
                if attempt < ATTEMPTS and any(PORT_TAKEN in line.lower() for line in error.log):
                    continue
                raise
            yield Server(port, log, process)
            return
        finally:
            stop(process)


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A process with its output in `log`, in a session of its own: Ctrl-C reaches us alone, and it ends as a whole.

    Raises:
        BenchmarkError: It cannot be started.
    """
    with log.open("wb") as output:
        try:
            return subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            remedy = "a long schedule of rows goes into the head file" if error.errno == errno.E2BIG else ""
            raise BenchmarkError(f"{command[0]} cannot be started: {error.strerror}", (), remedy) from error


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    """Poll `url` until it answers 200; see `serving` for what is raised."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchmarkError(
                f"the server ended with status {process.returncode} before it was ready",
                last_lines(log),
                f"its whole log is {log}",
            )
        with suppress(urllib.error.URLError, OSError), _DIRECT.open(url, timeout=2.0) as answer:
            if answer.status == 200:
                return
        time.sleep(POLL_SECONDS)
    raise BenchmarkError(
        f"the server was not ready after {timeout:.0f} s",
        last_lines(log),
        f"its whole log is {log}; --start-timeout gives it longer",
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it started: politely first, then not."""
    try:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(SHUTDOWN_SECONDS)
    finally:
        # A second Ctrl-C cuts the wait short, not this.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
