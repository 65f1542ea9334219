"""Compiles the C++ kernels on first use into a per-user cache, safely beside other processes that do the same.

The library has a plain C interface and includes no torch header: it builds in seconds, needs no ninja, loads without
importing anything, and the same core runs under sanitizers in tests/fuzz. Each file gets its own instruction-set flags.
"""

import atexit
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

KERNELS = Path(__file__).parent
ATTENTION = KERNELS / "segpaged_attention" / "cpu"
KV_WRITE = KERNELS / "kv_write" / "cpu"
COMPILERS = ("g++", "clang++", "c++")
COMMON_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"),
    *("-ffp-contract=fast", "-fopenmp"),
)
AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")
AVX512_FLAGS = (
    *AVX2_FLAGS,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
)
PORTABLE_SOURCES = (
    ATTENTION / "schedule.cpp",
    ATTENTION / "cpu_features.cpp",
    ATTENTION / "variant_portable.cpp",
    KV_WRITE / "kv_write.cpp",
)
X86_SOURCES = {
    ATTENTION / "variant_avx2.cpp": AVX2_FLAGS,
    ATTENTION / "variant_avx512.cpp": AVX512_FLAGS,
    ATTENTION / "variant_avx512_bf16.cpp": (*AVX512_FLAGS, "-mavx512bf16"),
}
AMX_SOURCES = {
    ATTENTION / "variant_amx.cpp": (*AVX512_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}


class BuildError(RuntimeError):
    """The kernels cannot be compiled here; the message says what would help."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler and what its `--version` says."""

    path: str
    version: str


def find_compiler(names: tuple[str, ...] = COMPILERS) -> Compiler:
    """The first of `names` on the PATH.

    Raises:
        BuildError: none is there.
    """
    for name in names:
        path = shutil.which(name)
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            return Compiler(path, version)
    raise BuildError(
        f"no C++ compiler on the PATH (tried {', '.join(names)}); install one, e.g. the package g++"
    )


def cpu_flags() -> str:
    """The processor's feature flags, or its name where the system does not list them."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.partition(":")[2].split()))
    return platform.processor()


def sources(machine: str) -> dict[Path, tuple[str, ...]]:
    """Every source file for `machine` with the flags that only it gets; AMX aside, which not every compiler knows."""
    files: dict[Path, tuple[str, ...]] = dict.fromkeys(PORTABLE_SOURCES, ())
    if machine in ("x86_64", "AMD64"):
        files |= X86_SOURCES
    return files


def cache_key(compiler: Compiler) -> str:
    """Names the library: sources, flags, compiler, torch (it brings the OpenMP runtime) and processor."""
    digest = hashlib.sha256()
    for path in sorted(
        p for folder in (ATTENTION, KV_WRITE) for p in folder.iterdir() if p.suffix in (".cpp", ".h")
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    flags = [
        COMMON_FLAGS,
        sorted((p.name, f) for p, f in (sources(platform.machine()) | AMX_SOURCES).items()),
    ]
    for part in (repr(flags), compiler.version, torch.__version__, platform.machine(), cpu_flags()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:20]


def compile_library(compiler: Compiler, target: Path) -> None:
    """Compile and link everything to `target`, whose folder must exist; object files go to a folder of their own.

    Raises:
        BuildError: the compiler failed; the message holds its last lines.
    """
    machine = platform.machine()
    files = sources(machine)
    defines = ["-DSEGPAGED_X86"] if machine in ("x86_64", "AMD64") else []
    if defines and _accepts(compiler, AMX_SOURCES[ATTENTION / "variant_amx.cpp"]):
        files |= AMX_SOURCES
        defines.append("-DSEGPAGED_AMX")
    with tempfile.TemporaryDirectory(prefix="redknot-build-") as folder:

        def compile_one(item: tuple[Path, tuple[str, ...]]) -> str:
            source, flags = item
            target_object = str(Path(folder) / f"{source.stem}.o")
            _run([compiler.path, *COMMON_FLAGS, *flags, *defines, "-c", str(source), "-o", target_object])
            return target_object

        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            objects = list(pool.map(compile_one, files.items()))
        linked = Path(folder) / "linked.so"
        _run([compiler.path, *COMMON_FLAGS, "-shared", *objects, "-o", str(linked)])
        # The rename makes the library appear whole or not at all; it works within one file system only.
        descriptor, staged = tempfile.mkstemp(dir=target.parent, suffix=".partial")
        os.close(descriptor)
        shutil.copyfile(linked, staged)
        Path(staged).chmod(0o755)
        Path(staged).replace(target)


def library(cache_dir: Path | None = None, compiler: Compiler | None = None) -> Path:
    """The compiled library, built if this source, compiler and processor have none yet.

    Where `cache_dir` cannot be written, the library is built into a temporary folder of this process.

    Args:
        cache_dir: folder of compiled kernels; default ``~/.cache/vllm-redknot/kernels``.
        compiler: default the first of `COMPILERS` on the PATH.

    Raises:
        BuildError: no compiler, or it failed.
    """
    compiler = compiler or find_compiler()
    try:
        folder = (cache_dir or default_cache_dir()) / cache_key(compiler)
        target = folder / "segpaged.so"
        if target.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            # Another process may have finished while this one waited for the lock.
            if not target.exists():
                compile_library(compiler, target)
        return target
    except OSError:
        private = Path(tempfile.mkdtemp(prefix="redknot-kernels-"))
        atexit.register(shutil.rmtree, private, ignore_errors=True)
        target = private / "segpaged.so"
        compile_library(compiler, target)
        return target


def default_cache_dir() -> Path:
    """Where compiled kernels are kept unless the configuration says otherwise.

    Raises:
        OSError: this user has no home.
    """
    try:
        return Path.home() / ".cache" / "vllm-redknot" / "kernels"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def _accepts(compiler: Compiler, flags: tuple[str, ...]) -> bool:
    command = [compiler.path, *flags, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(command, input="", text=True, capture_output=True, check=False).returncode == 0


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last_lines = "\n".join(done.stderr.splitlines()[-15:])
        raise BuildError(f"{' '.join(command)} failed with exit status {done.returncode}:\n{last_lines}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the system drops it when the process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
