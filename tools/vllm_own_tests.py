"""Run vLLM's own CPU tests of the KV cache twice, stock and with the plugin registered, and compare test by test.

    python -m tools.vllm_own_tests [--source UNPACKED_SDIST] [--report docs/compatibility_vllm_tests.md] [FILE ...]

The tests come from the source distribution of the installed vLLM, which pip downloads into the cache folder. Only its
`tests/` folder is used: the `vllm` package beside it would hide the installed one. The exit status is 0 if every test
that passes or is skipped without the plugin does the same with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

TEST_FILES = (
    "tests/v1/core/test_single_type_kv_cache_manager.py",
    "tests/v1/core/test_prefix_caching.py",
    "tests/v1/core/test_swa_inflight_window_free.py",
    "tests/v1/core/test_deferred_block_free.py",
    "tests/v1/test_kv_cache_spec_registry.py",
    "tests/v1/core/test_contiguous_kv_packing.py",
    "tests/v1/core/test_kv_cache_utils.py",
)
"""The block managers, the hybrid coordinator, the spec registry and the grouping that the plugin extends."""

MODELS: dict[str, dict[str, object]] = {
    "facebook/opt-125m": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "ffn_dim": 3072,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
        "word_embed_proj_dim": 768,
        "torch_dtype": "float16",
    },
    "Qwen/Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "vocab_size": 151936,
        "torch_dtype": "bfloat16",
    },
    "Qwen/Qwen1.5-7B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "vocab_size": 151936,
        "torch_dtype": "bfloat16",
    },
}
"""Shapes that tests read from the working directory, where vLLM's CI downloads them. No weights are loaded."""

STOCK = """
import logging, sys, pytest


class FromConftest:
    \"\"\"The one fixture these tests take from vLLM's conftest, which imports what only its CI has.\"\"\"

    @pytest.fixture
    def caplog_vllm(self, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
        return caplog
"""
REGISTER = """
from vllm_redknot.plugin import register

register()
from vllm.v1.attention.backends.registry import AttentionBackendEnum

assert "REDKNOT" in AttentionBackendEnum.__members__, "the plugin did not register"
"""
RUN = "sys.exit(pytest.main(sys.argv[1:], plugins=[FromConftest()]))"

Outcomes = dict[str, str]
"""Test id -> passed, skipped or failed."""


class SourceUnavailableError(Exception):
    """vLLM's source distribution could not be had."""


def default_cache() -> Path:
    """Where sources are kept between runs, outside the repository."""
    return Path.home() / ".cache" / "vllm-redknot" / "vllm-tests"


def installed_version() -> str:
    """vLLM's public version, without a local part such as +cpu."""
    program = "import vllm; print('VERSION', vllm.__version__)"
    output = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    return output.split("VERSION ")[1].split("+")[0].strip()


def test_folder(version: str, cache: Path, source: Path | None) -> Path:
    """A folder with vLLM's `tests/` and nothing else that can be imported; filled on first use.

    Raises:
        SourceUnavailableError: pip could not download the source distribution, or `source` has no tests.
    """
    folder = cache / version
    if (folder / "complete").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="vllm-sdist-") as scratch:
        found = source or _download(version, Path(scratch))
        if not (found / "tests" / "v1" / "core").is_dir():
            raise SourceUnavailableError(
                f"{found} has no tests/v1/core: give an unpacked vLLM {version} sdist"
            )
        shutil.copytree(found / "tests", folder / "tests")
    for name, shape in MODELS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(shape, indent=1))
    (folder / "complete").touch()
    return folder


def _download(version: str, scratch: Path) -> Path:
    """pip's unpacked source. Its metadata step wants build tools and fails, which leaves the source behind."""
    command = [sys.executable, "-m", "pip", "download", "--no-clean", "--no-deps", "--no-binary", ":all:"]
    command += ["--no-build-isolation", "--dest", str(scratch / "dest"), f"vllm=={version}"]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(scratch)}, capture_output=True, text=True, check=False
    )
    unpacked = sorted(path.parent for path in scratch.glob("pip-*/vllm_*/PKG-INFO"))
    if not unpacked:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise SourceUnavailableError(f"pip download vllm=={version}: {last}")
    return unpacked[0]


def run_tests(folder: Path, files: Sequence[str], with_plugin: bool) -> Outcomes:
    """Run test files in a process of their own.

    Raises:
        RuntimeError: pytest reported no tests.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        # The cut-off leaves out tests/conftest.py.
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            "--rootdir",
            ".",
            "-o",
            "xfail_strict=false",
        ]
        options += ["--confcutdir", "tests/v1", f"--junitxml={report}", "-o", "junit_family=xunit1", *files]
        program = STOCK + (REGISTER if with_plugin else "") + RUN
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        if not with_plugin:
            # vLLM would otherwise load the installed plugin by its entry point.
            environment["VLLM_PLUGINS"] = ""
        done = subprocess.run(
            [sys.executable, "-c", program, *options],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if not report.exists():
            raise RuntimeError(f"pytest ended without a report:\n{(done.stdout + done.stderr)[-2000:]}")
        outcomes = _outcomes(report)
    if not outcomes:
        raise RuntimeError(f"pytest found no tests:\n{done.stdout[-2000:]}")
    return outcomes


def _outcomes(report: Path) -> Outcomes:
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        children = {child.tag for child in case}
        file = case.get("file") or str(case.get("classname")).replace(".", "/") + ".py"
        outcome = (
            "failed" if children & {"failure", "error"} else "skipped" if "skipped" in children else "passed"
        )
        module = file.removesuffix(".py").replace("/", ".")
        in_class = str(case.get("classname")).removeprefix(module).strip(".")
        outcomes["::".join(part for part in (file, in_class, str(case.get("name"))) if part)] = outcome
    return outcomes


def differences(stock: Mapping[str, str], plugin: Mapping[str, str]) -> list[str]:
    """Tests whose outcome the plugin changes, in words."""
    names = sorted(stock.keys() | plugin.keys())
    return [
        f"{name}: {stock.get(name, 'absent')} without the plugin, {plugin.get(name, 'absent')} with it"
        for name in names
        if stock.get(name) != plugin.get(name)
    ]


def table(version: str, stock: Mapping[str, str], plugin: Mapping[str, str]) -> str:
    """The result per file, as Markdown."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for run, outcomes in (("stock", stock), ("plugin", plugin)):
        for name, outcome in outcomes.items():
            file = name.split("::")[0]
            counts.setdefault(file, {"stock": Counter(), "plugin": Counter()})[run][outcome] += 1
    lines = [
        f"vLLM {version}, its own tests on a CPU, without the plugin and with it registered.",
        "Made by `python -m tools.vllm_own_tests`.",
        "",
        "| file | passed, stock | passed, plugin | skipped | failed, stock | failed, plugin |",
        "|---|---|---|---|---|---|",
    ]
    for file, runs in sorted(counts.items()):
        a, b = runs["stock"], runs["plugin"]
        lines.append(
            f"| {file} | {a['passed']} | {b['passed']} | {b['skipped']} | {a['failed']} | {b['failed']} |"
        )
    changed = differences(stock, plugin)
    lines += [
        "",
        f"Tests whose outcome the plugin changes: {len(changed)}.",
        *[f"- {line}" for line in changed],
    ]
    return "\n".join(lines) + "\n"


def compare(
    files: Sequence[str], cache: Path, source: Path | None
) -> tuple[str, dict[str, str], dict[str, str]]:
    """vLLM's version and the outcomes without and with the plugin.

    Raises:
        SourceUnavailableError: vLLM's tests could not be had.
    """
    version = installed_version()
    folder = test_folder(version, cache, source)
    stock, plugin = (run_tests(folder, files, with_plugin) for with_plugin in (False, True))
    if again := [name for name in stock if plugin.get(name, stock[name]) != stock[name]]:
        # Some of vLLM's tests have time limits, which a busy machine misses.
        stock |= run_tests(folder, again, with_plugin=False)
        plugin |= run_tests(folder, again, with_plugin=True)
    return version, stock, plugin


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, and say whether the plugin changes an outcome."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", default=TEST_FILES, help="test files, relative to vLLM's root")
    parser.add_argument("--source", type=Path, help="an unpacked sdist, instead of downloading it")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the tests are kept")
    parser.add_argument("--report", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    try:
        version, stock, plugin = compare(options.files, options.cache, options.source)
    except SourceUnavailableError as reason:
        print(reason, file=sys.stderr)
        return 2
    text = table(version, stock, plugin)
    print(text)
    if options.report:
        options.report.write_text("# vLLM's own tests\n\n" + text)
    return 1 if differences(stock, plugin) else 0


if __name__ == "__main__":
    sys.exit(main())
