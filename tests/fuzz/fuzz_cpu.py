"""Builds the C++ kernels with AddressSanitizer and UndefinedBehaviorSanitizer and feeds them random batches.

Ten minutes: ``python tests/fuzz/fuzz_cpu.py --seconds 600``. AMX tiles are emulated, so its blocking is covered too.
"""

import argparse
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from vllm_redknot.kernels import build

HERE = Path(__file__).parent
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def build_fuzzer(folder: Path) -> Path:
    """Compile the kernels and the fuzzer into `folder`; returns the program."""
    compiler = build.find_compiler()
    x86 = platform.machine() == "x86_64"
    defines = ["-DSEGPAGED_X86", "-DSEGPAGED_AMX", "-DSEGPAGED_EMULATE_TILES"] if x86 else []
    files = (
        build.sources(platform.machine())
        | (build.AMX_SOURCES if x86 else {})
        | {HERE / "fuzz_attention.cpp": ()}
    )
    include = [f"-I{path}" for path in (HERE, build.ATTENTION, build.KV_WRITE)]
    flags = ["-std=c++17", "-O1", "-g1", "-fno-var-tracking", "-fopenmp", "-ffp-contract=fast", *SANITIZERS]
    jobs, objects = [], []
    for source, extra in files.items():
        objects.append(str(folder / f"{source.stem}.o"))
        command = [compiler.path, *flags, *extra, *defines, *include, "-c", str(source), "-o", objects[-1]]
        jobs.append(subprocess.Popen(command))
        if len(jobs) % 2 == 0:
            jobs[-1].wait()
    if any(job.wait() for job in jobs):
        raise SystemExit("the fuzzer does not compile")
    program = folder / "fuzz_attention"
    subprocess.run([compiler.path, *flags, *objects, "-o", str(program)], check=True)
    return program


def fuzz(seconds: float, seed: int) -> str:
    """Run the fuzzer; returns its summary.

    Raises:
        subprocess.CalledProcessError: a wrong result, or a sanitizer's report (on stderr).
    """
    with tempfile.TemporaryDirectory() as folder:
        program = build_fuzzer(Path(folder))
        # A sanitizer wants to be the first library; vLLM in the same process may have preloaded others.
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        done = subprocess.run(
            [program, str(seconds), str(seed)], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        return done.stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(fuzz(arguments.seconds, arguments.seed))
