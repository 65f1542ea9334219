"""Servers are waited for, measured by their log, and taken down with all they started."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.server import Capacity, ServerError, free_port, stop, wait_until_healthy


def start(code: str) -> subprocess.Popen[bytes]:
    """A Python process in a group of its own that writes `ready` once it runs."""
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


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
    with pytest.raises(ServerError, match="nothing of the kind"):
        Capacity.of_log(log)


def test_a_server_that_ends_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("early line\n" * 100 + "out of luck\n")
    process = start("print('ready', flush=True); raise SystemExit(3)")
    process.wait()
    with pytest.raises(ServerError, match=r"ended with status 3\n(.*\n)*.*out of luck"):
        wait_until_healthy(process, free_port(), log, timeout=30.0)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    process = start("print('ready', flush=True); import time; time.sleep(600)")
    with pytest.raises(ServerError, match="not healthy after 0 s"):
        wait_until_healthy(process, free_port(), log, timeout=0.1)
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
