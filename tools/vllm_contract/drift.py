"""What changed, between two releases, in the classes we subclass and the functions we patch.

A signature can stay and its meaning change: a new property of a base class may decide which pages are readable. So
every difference has to be looked at once, and the verdict is kept in `reviewed.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.vllm_contract.classes import Member, class_view
from tools.vllm_contract.source import VllmSource


def subclassed(files: Iterable[Path]) -> set[tuple[str, str]]:
    """(module, class) of vLLM's classes that ours derive from directly."""
    found = set()
    for path in files:
        tree = ast.parse(path.read_text())
        imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
            for alias in node.names
        }
        for node in tree.body:
            for base in node.bases if isinstance(node, ast.ClassDef) else []:
                name = base.value if isinstance(base, ast.Subscript) else base
                if isinstance(name, ast.Name) and (origin := imported.get(name.id)):
                    found.add((str(origin[0]), origin[1]))
    return found


def differences(
    old: VllmSource, new: VllmSource, classes: Iterable[tuple[str, str]], called: Iterable[tuple[str, str]]
) -> Iterator[str]:
    """Each with ` new`, ` gone` or ` changed` after its name.

    Args:
        old: a release.
        new: a later one.
        classes: (module, class) whose members count, inherited ones included.
        called: `module:function` or `module:Class.method` whose body counts, as each release has it.
    """
    for module, name in sorted(classes):
        olds, news = _members(old, module, name), _members(new, module, name)
        for member in sorted(olds.keys() | news.keys()):
            if verdict := _verdict(_node(olds.get(member)), _node(news.get(member))):
                yield f"{name}.{member} {verdict}"
    for before, after in sorted(called):
        if verdict := _verdict(_find(old, before), _find(new, after)):
            yield f"{after.partition(':')[2]} {verdict}"


def _members(source: VllmSource, module: str, name: str) -> dict[str, Member]:
    definition = source.find(module, name)
    return class_view(source, definition).members if definition and definition.is_class else {}


def _node(member: Member | None) -> ast.stmt | None:
    return member.node if member else None


def _find(source: VllmSource, symbol: str) -> ast.stmt | None:
    """A function or method; None for a class, whose parts are compared one by one where they matter."""
    module, _, path = symbol.partition(":")
    owner, _, name = path.rpartition(".")
    if owner:
        return _node(_members(source, module, owner).get(name))
    definition = source.find(module, name)
    return definition.node if definition and not definition.is_class else None


def _verdict(before: ast.stmt | None, after: ast.stmt | None) -> str | None:
    if before is None or after is None:
        return None if before is after else ("new" if before is None else "gone")
    return None if _meaning(before) == _meaning(after) else "changed"


def _meaning(node: ast.stmt) -> str:
    """A statement without its docstrings and comments."""
    text = ast.unparse(node)
    tree = ast.parse(text)
    for part in ast.walk(tree):
        body = getattr(part, "body", None)
        if isinstance(part, ast.FunctionDef) and body and isinstance(body[0], ast.Expr):
            part.body = body[1:] or [ast.Pass()]
    return ast.dump(tree)
