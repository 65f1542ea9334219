"""What a measurement runs on, and whether a server fits it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from vllm_redknot.benchmarking.errors import BenchmarkError
from vllm_redknot.evals.memory import available_bytes
from vllm_redknot.machine import machine

GPU_DEVICES: Final = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128")
WORKING_BYTES: Final = 2 * 2**30
"""A server's processes and activations on a CPU, a guess."""
GIB: Final = 2**30


def described_machine() -> dict[str, Any]:
    """Python, system, processor, memory and GPUs; no paths."""
    found = machine()
    del found["executable"]
    return {**found, "gpus": gpus()}


def gpus() -> list[str]:
    """Names and memory of NVIDIA GPUs, by their own tool; nothing where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (subprocess.SubprocessError, OSError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def has_gpu() -> bool:
    """Whether there is a device that vLLM may use in place of the CPU."""
    return any(Path(device).exists() for device in GPU_DEVICES)


def check_host_memory(kv_bytes: int, weight_bytes: int | None) -> None:
    """Raises BenchmarkError where a server on the CPU would be killed; a GPU's memory vLLM checks itself."""
    free = available_bytes()
    if has_gpu() or free is None:
        return
    wanted = kv_bytes + (weight_bytes or 0) + WORKING_BYTES
    if wanted > free:
        raise BenchmarkError(
            f"a server needs about {wanted / GIB:.1f} GiB (KV cache {kv_bytes / GIB:.1f}, weights"
            f" {(weight_bytes or 0) / GIB:.1f}, and {WORKING_BYTES / GIB:.0f}), and {free / GIB:.1f} GiB are free:"
            " give less --kv-bytes or a smaller --max-model-len"
        )
