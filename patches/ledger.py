"""How vLLM is changed: a typed record per changed symbol, applied once, after its signature has been checked."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OWNER = "__redknot_patch__"
"""Attribute set on every replacement; names the patch that owns the symbol."""


class PatchError(RuntimeError):
    """A symbol is missing, has another signature than the patch was written for, or is patched already."""


@dataclass(frozen=True)
class Patch:
    """One vLLM symbol and what replaces it.

    `wrap` gets the original function and returns the replacement, which must behave as the original unless REDKNOT was
    asked for.
    """

    name: str
    module: str
    symbol: str  # attribute path within the module
    parameters: tuple[str, ...]  # of the original, in order
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    why: str
    versions: str
    upstream: str
    removable_when: str

    @property
    def target(self) -> str:
        """``module:symbol``."""
        return f"{self.module}:{self.symbol}"


def locate(module: str, symbol: str) -> tuple[Any, str, Any]:
    """Owner object, attribute name and raw attribute (class and static methods unbound) of a dotted symbol.

    Raises:
        PatchError: The module or the symbol does not exist.
    """
    try:
        owner: Any = importlib.import_module(module)
        *path, name = symbol.split(".")
        for part in path:
            owner = getattr(owner, part)
        return owner, name, inspect.getattr_static(owner, name)
    except (ImportError, AttributeError) as error:
        raise PatchError(f"vLLM has no {module}:{symbol} ({error})") from error


def parameters_of(raw: Any) -> tuple[str, ...]:
    """Parameter names of a function, class method or static method, `self`/`cls` included."""
    function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
    return tuple(inspect.signature(function).parameters)


def apply(patch: Patch) -> None:
    """Replace the symbol.

    Raises:
        PatchError: See the class.
    """
    owner, name, raw = locate(patch.module, patch.symbol)
    function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
    if holder := getattr(function, OWNER, None):
        raise PatchError(f"{patch.target} is patched already, by {holder!r}")
    if parameters_of(raw) != patch.parameters:
        raise PatchError(
            f"{patch.target} takes {parameters_of(raw)}, and {patch.name!r} knows {patch.parameters}"
        )
    replacement = patch.wrap(function)
    setattr(replacement, OWNER, patch.name)
    setattr(
        owner, name, type(raw)(replacement) if isinstance(raw, (classmethod, staticmethod)) else replacement
    )


def is_applied(patch: Patch) -> bool:
    """Whether the symbol's current owner is this patch."""
    _, _, raw = locate(patch.module, patch.symbol)
    function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
    return getattr(function, OWNER, None) == patch.name
