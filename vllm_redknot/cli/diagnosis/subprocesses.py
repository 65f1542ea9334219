"""Runs a probe in a process of its own: a crash, a hang or output of it becomes a finding, not the doctor's end."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from vllm_redknot.whole_file import write_whole

LAST_LINES: Final = 3


class Probed(NamedTuple):
    """What a probe reported; or why it could not, in one line."""

    report: dict[str, Any] | None
    failure: str = ""


def run_probe(module: str, argument: str = "", timeout: float = 120.0) -> Probed:
    """Run `python -m module`, a module that ends in `report_to_parent`. `argument` is handed to it as text."""
    with tempfile.TemporaryDirectory(prefix="redknot-doctor-") as folder:
        answer = Path(folder) / "answer.json"
        # -P: the working directory is no place to import from.
        command = [sys.executable, "-P", "-m", module, str(answer), argument]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return Probed(None, f"no answer in {timeout:.0f} s")
        if answer.is_file():
            report: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return Probed(report)
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    died = f"died of signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    return Probed(None, f"{died}: {' | '.join(lines[-LAST_LINES:])}")


def report_to_parent(probe: Callable[[str], dict[str, Any]]) -> None:
    """What a probe's main block calls: the report appears whole or not at all."""
    answer = Path(sys.argv[1])
    text = json.dumps(probe(sys.argv[2]), allow_nan=False)
    write_whole(answer, text)
