"""Runs a file of tests/kernels/interpreted under Triton's interpreter, chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "interpreted"


def run_interpreted(file: str, *options: str) -> None:
    """pytest over `interpreted/<file>` in a fresh process; its output is the assertion's message."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", str(FOLDER / file), *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout[-6000:]}\n{result.stderr[-2000:]}"
