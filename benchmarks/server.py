"""Servers of benchmarks and tests: those of `redknot bench`, offline, and errors that hold the end of the log."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from vllm_redknot.benchmarking import server as servers
from vllm_redknot.benchmarking.errors import BenchmarkError

VLLM: Final = (
    *("env", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1"),
    str(Path(sys.executable).with_name("vllm")),
)
"""The `vllm` command of this environment, as users call it, asking neither a model hub nor a usage server."""


class ServerError(RuntimeError):
    """The server did not start, or ended early; the message holds the end of its log."""


class Server(servers.Server):
    """A running server that answers on `base_url`."""

    @property
    def base_url(self) -> str:
        """Where the OpenAI API is."""
        return f"{self.url}/v1"

    def capacity(self) -> servers.Capacity:
        """What fits the KV-cache pool; raises ServerError where the log does not say."""
        with _logs_in_errors():
            return servers.Capacity.of_log(self.log)


@contextmanager
def serving(model: Path, flags: Sequence[str], log: Path, timeout: float = 240.0) -> Iterator[Server]:
    """As `redknot bench` does: run `vllm serve MODEL FLAGS` until the block is left, however it is left.

    Args:
        model: folder of the model.
        flags: further flags of `vllm serve`; host and port are set here.
        log: file for the server's output.
        timeout: seconds until the server has to be healthy.

    Raises:
        ServerError: it ended or was not healthy in time.
    """
    with ExitStack() as stack:
        with _logs_in_errors():
            running = stack.enter_context(servers.serving(model, flags, log, timeout, VLLM))
        yield Server(running.port, running.log, running.process)


@contextmanager
def _logs_in_errors() -> Iterator[None]:
    try:
        yield
    except BenchmarkError as error:
        raise ServerError("\n".join((error.what, *(f"  | {line}" for line in error.log)))) from error
