"""Servers are waited for, measured by their log, and taken down with all they started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import benchmarks.server as server_module
from benchmarks.server import Server, ServerError, serving
from tests.cli import stand_in_vllm
from vllm_redknot.benchmarking import server as measured
from vllm_redknot.benchmarking.errors import BenchmarkError
from vllm_redknot.benchmarking.server import HOST, Capacity, free_port, stop, wait_until_healthy


def start(code: str) -> subprocess.Popen[bytes]:
    """A Python process in a group of its own that writes `ready` once it runs."""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def address() -> str:
    """Where nobody listens."""
    return f"http://{HOST}:{free_port()}/health"


def test_the_capacity_line_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "x\n(EngineCore pid=1) INFO [kv_cache_utils.py:2327] CPU KV cache size: 46,592 tokens,"
        " Maximum concurrency for 8,192 tokens per request: 5.69x\n"
    )
    capacity = Capacity.of_log(log)
    assert (capacity.tokens, capacity.max_model_len, capacity.max_concurrency) == (46592, 8192, 5.69)


def test_a_log_without_a_capacity_line_is_an_error_that_shows_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("nothing of the kind\n")
    with pytest.raises(BenchmarkError, match="did not say what fits") as error:
        Capacity.of_log(log)
    assert error.value.log == ("nothing of the kind",)
    process = start("print('ready', flush=True)")
    with pytest.raises(ServerError, match=r"what fits its KV cache\n  \| nothing of the kind"):
        Server(1, log, process).capacity()
    stop(process)


def test_a_server_that_ends_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("early line\n" * 100 + "out of luck\n")
    process = start("print('ready', flush=True); raise SystemExit(3)")
    process.wait()
    with pytest.raises(BenchmarkError, match=f"ended with status 3 before it was ready: .*{log}") as error:
        wait_until_healthy(process, address(), log, timeout=30.0)
    assert error.value.log[-1] == "out of luck"
    assert error.value.what == "the server ended with status 3 before it was ready"


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    process = start("print('ready', flush=True); import time; time.sleep(600)")
    with pytest.raises(BenchmarkError, match="was not ready after 0 s"):
        wait_until_healthy(process, address(), log, timeout=0.1)
    stop(process)
    assert process.returncode is not None


def test_stopping_ends_the_children_too() -> None:
    process = start(
        "import subprocess, sys, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    group = process.pid
    stop(process)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"process group {group} still has members")


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers at once in place of vLLM's, started by the same words."""
    *words, _ = server_module.VLLM
    monkeypatch.setattr(server_module, "VLLM", (*words, sys.executable, stand_in_vllm.__file__))


def test_a_server_of_a_benchmark_is_the_process_that_is_told_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    flags = ["--diary", str(tmp_path / "diary"), "--max-model-len", "1024"]
    with serving(tmp_path, flags, tmp_path / "log", 120.0) as server:
        assert server.base_url == f"http://127.0.0.1:{server.port}/v1"
        assert int((tmp_path / "diary").read_text().split()[1]) == server.process.pid
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == -signal.SIGTERM


def test_a_benchmark_shows_the_log_of_a_server_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    with (
        pytest.raises(ServerError, match=r"ended with status 3 before it was ready\n(.*\n)*.*out of luck"),
        serving(tmp_path, ["--die"], tmp_path / "log", 120.0),
    ):
        pytest.fail("it started")


def test_a_command_that_cannot_be_started_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"/nowhere cannot be started: No such file or directory$"):
        measured.start(["/nowhere"], tmp_path / "log")
    with pytest.raises(BenchmarkError, match=r"Argument list too long: a long schedule .* the head file"):
        measured.start([sys.executable, "-c", "0" * 2**18], tmp_path / "log")
