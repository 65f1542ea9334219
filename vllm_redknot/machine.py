"""What is computed on: Python, system, processor and memory; nothing heavy is imported."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any, Final

FEATURES: Final = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)
"""What the CPU kernels choose by, as Linux names it."""


def machine() -> dict[str, Any]:
    """Python, system, processor and memory."""
    cpuinfo = _cpuinfo()
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "cpu_features": [feature for feature in FEATURES if feature in flags],
        "memory_bytes": _memory_bytes(),
    }


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    pairs = (
        line.split(":", 1)
        for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        if ":" in line
    )
    return {key.strip(): value.strip() for key, value in pairs}


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
