"""Building the CPU kernels: the cache, processes that race, folders that cannot be written, compilers that fail."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Shape, build_case

from vllm_redknot.kernels import build, native
from vllm_redknot.kernels.layout import GLOBAL_WINDOW
from vllm_redknot.kernels.segpaged_attention import segpaged_attention

# Stands for g++: notes each call, then writes the file after -o, or fails.
SCRIPT = """#!/bin/sh
echo call >> {calls}
while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done
[ {status} = 0 ] && [ -n "$out" ] && sleep {seconds} && echo library > $out
[ {status} = 0 ] || echo 'error: unknown type name' >&2
exit {status}
"""


def fake_compiler(
    folder: Path, status: int = 0, seconds: float = 0, version: str = "fake 1.0"
) -> build.Compiler:
    script = folder / "compiler"
    script.write_text(SCRIPT.format(calls=folder / "calls", status=status, seconds=seconds))
    script.chmod(0o755)
    return build.Compiler(str(script), version)


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_a_library_is_compiled_once_and_then_found(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path)
    first = build.library(tmp_path / "cache", compiler)
    compiled = calls(tmp_path)
    assert build.library(tmp_path / "cache", compiler) == first
    assert calls(tmp_path) == compiled
    assert first.read_text() == "library\n"


def test_another_compiler_version_gets_another_library(tmp_path: Path) -> None:
    paths = [build.library(tmp_path, fake_compiler(tmp_path, version=version)) for version in ("1", "2")]
    assert paths[0] != paths[1]


def test_every_source_file_is_part_of_the_cache_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = fake_compiler(tmp_path)
    before = build.cache_key(compiler)
    (tmp_path / "attend.h").write_text("changed")
    monkeypatch.setattr(build, "ATTENTION", tmp_path)
    assert build.cache_key(compiler) != before


def test_two_processes_that_start_at_once_share_one_build(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, seconds=0.3)
    code = (
        "from pathlib import Path; from vllm_redknot.kernels import build; "
        f"print(build.library(Path({str(tmp_path / 'cache')!r}), build.Compiler({compiler.path!r}, 'fake 1.0')))"
    )
    racers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    paths = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert paths[0] == paths[1]
    assert Path(paths[0]).read_text() == "library\n"
    alone = tmp_path / "alone"
    alone.mkdir()
    build.library(alone / "cache", fake_compiler(alone))
    assert calls(tmp_path) == calls(alone)


def test_a_cache_that_cannot_be_written_gives_a_private_build(tmp_path: Path) -> None:
    # A path below a file cannot be created by anybody, root included.
    (tmp_path / "file").write_text("")
    path = build.library(tmp_path / "file" / "cache", fake_compiler(tmp_path))
    assert path.read_text() == "library\n"
    assert tmp_path not in path.parents


def test_no_compiler_is_an_error_that_names_the_fix() -> None:
    with pytest.raises(
        build.BuildError, match=r"no C\+\+ compiler on the PATH \(tried no-such\).*install one"
    ):
        build.find_compiler(("no-such",))


def test_a_failing_compiler_is_quoted_and_leaves_no_library(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="unknown type name"):
        build.library(tmp_path / "cache", fake_compiler(tmp_path, status=1))
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_without_kernels_attention_runs_in_torch_and_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_library(_: Path | None) -> Path:
        raise build.BuildError("no C++ compiler on the PATH")

    monkeypatch.setattr(native, "_loaded", [])
    monkeypatch.setattr(native, "library", no_library)
    case = build_case(Shape([5], [40], (GLOBAL_WINDOW,), (0,), (0,)), seed=0)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            output = case.poisoned_output()
            segpaged_attention(case.query, case.layout, case.batch, output, case.softmax_scale)
    assert torch.allclose(output.float(), case.expected().float(), atol=2e-2)
    assert [record.getMessage().count("no C++ compiler") for record in caplog.records] == [1]


def test_the_real_kernels_load_and_name_their_variants() -> None:
    kernels = native.load()
    assert kernels is not None
    assert kernels.variants[-1] == "portable"
    assert "portable" in kernels.runnable
