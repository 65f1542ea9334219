"""An engine's crash is reported, its answers are kept, and nothing of it is left behind."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.evals.engine_process import EngineError, engine_process
from vllm_redknot.evals.requests import Request
from vllm_redknot.evals.run import Engine, answer_all

FAKE = (str(Path(__file__).with_name("fake_engine.py")),)
REQUESTS = [Request(f"r{number}", (1, 2, 3), max_tokens=2, forced=(4,)) for number in range(5)]


def engine(**mode: Any) -> Engine:
    return Engine("stock", {"additional_config": mode}, {"seed": 0})


def silent(name: str, done: int, total: int) -> None:
    del name, done, total


def test_every_request_is_answered_and_told_of(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = answer_all(engine(), REQUESTS, tmp_path, lambda *state: told.append(state), FAKE)
    assert list(found.answers) == [request.key for request in REQUESTS]
    assert found.facts["dtype"] == "bfloat16"
    assert told[0] == ("stock", 0, 5)
    assert told[-1] == ("stock", 5, 5)


def test_a_crash_is_reported_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as error:
        answer_all(engine(crash_after=3), REQUESTS, tmp_path, silent, FAKE)
    assert "the stock engine died of SIGSEGV after 3 of 5 answers: " in str(error.value)
    assert "a library says something last" in str(error.value)
    assert str(tmp_path / "stock.log") in str(error.value)
    told: list[int] = []
    found = answer_all(engine(), REQUESTS, tmp_path, lambda _, done, __: told.append(done), FAKE)
    assert len(found.answers) == 5
    assert told[0] == 3


def test_a_finished_run_starts_no_engine(tmp_path: Path) -> None:
    answer_all(engine(), REQUESTS, tmp_path, silent, FAKE)
    found = answer_all(engine(), REQUESTS, tmp_path, silent, ("-c", "raise SystemExit('started')"))
    assert len(found.answers) == 5


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"the stock engine failed: ValueError: no such dtype \(log: "):
        answer_all(engine(fail="ValueError: no such dtype"), REQUESTS, tmp_path, silent, FAKE)
    with pytest.raises(EngineError, match="ended with exit status 1 after 0 of 5 answers: no vllm here"):
        answer_all(engine(), REQUESTS, tmp_path, silent, ("-c", "raise SystemExit('no vllm here')"))


def is_running(process: int) -> bool:
    """Whether a process is alive; one that ended and that nobody asked about is not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_leaving_early_ends_the_engine(tmp_path: Path) -> None:
    code = "import os, time; print('{\"facts\": %d}' % os.getpid(), flush=True); time.sleep(600)"
    process = 0
    with (
        suppress(KeyboardInterrupt),
        engine_process("stock", {}, REQUESTS, tmp_path / "log", ("-c", code)) as replies,
    ):
        process = next(replies)["facts"]
        assert is_running(process)
        raise KeyboardInterrupt
    assert process
    assert not is_running(process)


def test_the_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """A real worker, before it gets as far as loading vLLM: its parent is killed without a chance to tidy up."""
    stand_in = tmp_path / "vllm"
    stand_in.mkdir()
    (stand_in / "__init__.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)\n"
    )
    start = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from vllm_redknot.evals.engine_worker import main; main()"
    )
    code = (
        "from pathlib import Path\n"
        "from vllm_redknot.evals.engine_process import engine_process\n"
        f"with engine_process('stock', {{}}, [], Path({str(tmp_path / 'log')!r}), ('-c', {start!r})) as replies:\n"
        "    next(replies)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    pid_file = tmp_path / "pid"
    wait_until(lambda: pid_file.is_file() and bool(pid_file.read_text()))
    worker = int(pid_file.read_text())
    assert is_running(worker)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(worker))


def wait_until(true: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
