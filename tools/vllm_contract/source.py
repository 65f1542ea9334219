"""The source of one vLLM release, read with `ast` from a wheel, an unpacked wheel or an installation."""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, eq=False)
class Definition:
    """A name at the top level of a module: a class, a function, or something assigned (`node` is the statement)."""

    module: str
    name: str
    node: ast.stmt

    @property
    def is_class(self) -> bool:
        """Whether it is a class."""
        return isinstance(self.node, ast.ClassDef)


class VllmSource:
    """The modules of one release, parsed when they are asked for."""

    def __init__(self, version: str, read: Callable[[str], str | None]) -> None:
        self.version = version
        self._read = read
        self.module = lru_cache(maxsize=None)(self._module)

    @classmethod
    def open(cls, path: Path) -> VllmSource:
        """A wheel, or a folder that holds `vllm/`.

        Raises:
            FileNotFoundError: There is no vLLM at `path`.
        """
        if path.is_file() and path.suffix == ".whl":
            wheel = zipfile.ZipFile(path)
            names = set(wheel.namelist())
            return cls(
                path.name.split("-")[1],
                lambda name: wheel.read(name).decode() if name in names else None,
            )

        def read(name: str) -> str | None:
            file = path / name
            return file.read_text() if file.is_file() else None

        if read("vllm/__init__.py") is None:
            raise FileNotFoundError(f"{path} is neither a wheel nor a folder that holds vllm/")
        found = re.search(r"^__version__ = version = '([^']+)'", read("vllm/_version.py") or "", re.MULTILINE)
        return cls(found[1] if found else "unknown", read)

    def _module(self, name: str) -> ast.Module | None:
        if name.split(".")[0] != "vllm":
            return None
        path = name.replace(".", "/")
        text = self._read(f"{path}.py") or self._read(f"{path}/__init__.py")
        return None if text is None else ast.parse(text)

    def has_module(self, name: str) -> bool:
        """Whether the release has a module."""
        return self.module(name) is not None

    def is_package(self, name: str) -> bool:
        """Whether a module is a folder of modules."""
        path = name.replace(".", "/")
        return self._read(f"{path}.py") is None and self._read(f"{path}/__init__.py") is not None

    def find(
        self, module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()
    ) -> Definition | None:
        """What a name of a module stands for, imports followed; a module counts as the name's definition, too."""
        tree = self.module(module)
        if tree is None or (module, name) in seen:
            return None
        seen |= {(module, name)}
        for node in _statements(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self.find(self._absolute(module, node), alias.name, seen)
            elif name in names_defined(node):
                return Definition(module, name, node)
        submodule = self.module(f"{module}.{name}")
        if submodule is not None:
            return Definition(f"{module}.{name}", name, ast.Pass())
        # vllm/__init__.py loads its public names lazily, from a table "name" -> ".module:name".
        lazy = re.search(rf'"{name}": "(\.[\w.]+):(\w+)"', ast.unparse(tree).replace("'", '"'))
        return self.find(module + lazy[1], lazy[2], seen) if lazy else None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + self.is_package(module)]
        return ".".join([*parts, *([node.module] if node.module else [])])


def _statements(tree: ast.Module) -> list[ast.stmt]:
    """Top-level statements, those under `if` and `try` included."""
    found: list[ast.stmt] = []
    queue: list[ast.stmt] = list(tree.body)
    while queue:
        node = queue.pop(0)
        found.append(node)
        if isinstance(node, ast.If | ast.Try):
            queue = [*node.body, *node.orelse, *queue]
    return found


def names_defined(node: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
