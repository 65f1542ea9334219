import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = [
    *("attention", "benchmarking", "evals", "heads", "kvcache", "profiler", "report", "reuse", "rows"),
    *("kernels", "patches"),
]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(folder: Path) -> set[str]:
    found = {name for path in folder.rglob("*.py") for name in imported(path)}
    assert found, folder
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_only_the_command_line_imports_the_command_line(repo_root: Path, package: str) -> None:
    folder = repo_root if package in ("kernels", "patches") else repo_root / "vllm_redknot"
    assert not [name for name in imports_of(folder / package) if name.startswith("vllm_redknot.cli")]


def test_kernels_import_no_engine_and_nothing_of_the_package_above_them(repo_root: Path) -> None:
    found = imports_of(repo_root / "kernels")
    assert not [name for name in found if name == "vllm" or name.startswith("vllm.")]
    assert not [name for name in found if name.startswith("vllm_redknot") and ".kernels" not in name]
