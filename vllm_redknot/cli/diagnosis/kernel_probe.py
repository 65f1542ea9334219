"""Inside its own process: builds or loads the kernels, then compares them with the oracle on a small case."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from vllm_redknot.cli.diagnosis.self_test import SelfTest, run_self_test
from vllm_redknot.cli.diagnosis.subprocesses import report_to_parent
from vllm_redknot.kernels import native
from vllm_redknot.kernels.build import BuildError, cache_key, find_compiler, library


def probe(argument: str) -> dict[str, Any]:
    """Torch and GPUs, the CPU library's build in the folder `argument`, and the self-test of whatever runs here."""
    build = _build(Path(argument))
    started = time.monotonic()
    results = run_self_test(build["runnable"])
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda_runtime": torch.version.cuda,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "build": build,
        "self_test": [_result(result) for result in results],
        "self_test_seconds": round(time.monotonic() - started, 2),
    }


def _build(cache_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = {
        **{"compiler": None, "compiler_version": None, "library": None, "seconds": None, "error": None},
        **{"variants": [], "runnable": []},
    }
    started = time.monotonic()
    try:
        compiler = find_compiler()
        report |= {"compiler": compiler.path, "compiler_version": compiler.version.partition("\n")[0]}
        report["built_before"] = (cache_dir / cache_key(compiler) / "segpaged.so").is_file()
        report["library"] = str(library(cache_dir, compiler))
    except (BuildError, OSError) as error:
        report["error"] = str(error)
        return report
    report["seconds"] = round(time.monotonic() - started, 2)
    if (kernels := native.load(cache_dir)) is None:
        report["error"] = f"{report['library']} was built and does not load"
        return report
    return report | {"variants": kernels.variants, "runnable": kernels.runnable}


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
    }


def _result(result: SelfTest) -> dict[str, Any]:
    return {**result._asdict(), "passed": result.passed}


if __name__ == "__main__":
    report_to_parent(probe)
