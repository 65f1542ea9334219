"""`redknot doctor`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.status import Status

from vllm_redknot.cli import options
from vllm_redknot.cli.app import PROBLEM, console, emit_json
from vllm_redknot.cli.diagnosis.findings import Finding
from vllm_redknot.cli.diagnosis.report import diagnose
from vllm_redknot.cli.units import show_bytes


def doctor(json: options.Json = False) -> None:
    """Check this installation, and print everything a bug report needs.

    Versions, processor and GPUs, whether vLLM loads the plugin and its patches hold, how the kernels were built and
    which run here, and a self-test of them against the oracle. vLLM and the kernels run in processes of their own, so
    that a crash is a finding. Takes about 20 seconds, a minute more where kernels are built. Exit status 1 if
    something is broken; each finding says what to do.

    Example:

      redknot doctor --json > redknot-doctor.json
    """
    # On stderr, and only where that is a terminal: stdout stays clean for --json.
    with Status("Looking at vLLM and the kernels", console=Console(stderr=True)):
        report, findings = diagnose()
    ok = not any(finding.severity == "broken" for finding in findings)
    if json:
        emit_json({"ok": ok, "findings": [finding._asdict() for finding in findings], **report})
    else:
        _show(report, findings)
    if not ok:
        raise typer.Exit(PROBLEM)


def _show(report: Mapping[str, Any], findings: Sequence[Finding]) -> None:
    out = console()
    machine = report["machine"]
    _section(
        out,
        "Machine",
        [
            ("system", f"{machine['platform']}, Python {machine['python']}"),
            (
                "processor",
                f"{machine['cpu']}, {machine['cpus']} CPUs, {show_bytes(machine['memory_bytes'] or 0)}",
            ),
            ("features", " ".join(machine["cpu_features"]) or "none the kernels know"),
        ],
    )
    _section(
        out, "Versions", [(name, version or "not installed") for name, version in report["versions"].items()]
    )
    settings = report["settings"]
    _section(
        out,
        "Plugin",
        [
            ("entry point", ", ".join(report["entry_points"]) or "none"),
            (
                "cache",
                f"{settings['cache_path']} ({'writable' if settings['cache_writable'] else 'not writable'})",
            ),
            *_engine_lines(report["engine"]),
        ],
    )
    _section(out, "Kernels", _kernel_lines(report["kernels"]))
    out.print()
    for finding in findings:
        out.print(
            f"{finding.severity.upper()}: {finding.what}. Remedy: {finding.remedy}.",
            soft_wrap=True,
        )
    if not findings:
        out.print("No problem found.")


def _section(out: Console, title: str, lines: Sequence[tuple[str, str]]) -> None:
    out.print(title, style="bold")
    for name, value in lines:
        out.print(f"  {name}: {value}", soft_wrap=True)


def _engine_lines(engine: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if engine is None or "error" in engine:
        return [("vLLM", "not asked" if engine is None else f"does not load: {engine['error']}")]
    loaded = "called by vLLM" if engine["loaded_by_vllm"] else "not called by vLLM"
    backend = "registered" if engine["backend_registered"] else "not registered"
    lines = [
        ("vLLM", f"{engine['vllm']} on {engine['platform']}"),
        ("register()", f"{loaded}; REDKNOT {backend}"),
    ]
    lines += [("said", message) for message in engine["messages"]]
    for patch in engine["patches"]:
        lines.append(
            (f"patch {patch['target']}", "applied" if patch["applied"] else patch["error"] or "not applied")
        )
    return lines


def _kernel_lines(kernels: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if kernels is None or "error" in kernels:
        return [("kernels", "not asked" if kernels is None else kernels["error"])]
    build = kernels["build"]
    gpus = [
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {show_bytes(gpu['memory_bytes'])}"
        for gpu in kernels["gpus"]
    ]
    lines = [("GPU", text) for text in gpus or ["none"]]
    lines.append(
        ("compiler", f"{build['compiler_version']} ({build['compiler']})" if build["compiler"] else "none")
    )
    if build["error"]:
        lines.append(("build", build["error"]))
    else:
        how = "found" if build["built_before"] else f"built in {build['seconds']:.0f} s"
        lines.append(("library", f"{build['library']} ({how})"))
        lines.append(
            ("variants", f"{', '.join(build['runnable'])} run here, of {', '.join(build['variants'])}")
        )
    for result in kernels["self_test"]:
        shown = result["error"] if result["max_error"] is None else f"error {result['max_error']:.1e}"
        verdict = "ok" if result["passed"] else "FAILED"
        lines.append((f"self-test {result['kernel']}, {result['dtype']}", f"{verdict}, {shown}"))
    return lines
