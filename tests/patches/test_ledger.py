"""The ledger: a patch is applied once, to the symbol it was written for, and says who holds a symbol."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from vllm_redknot.patches.ledger import Patch, PatchError, apply, is_applied


class Platform:
    @classmethod
    def choose(cls, name: str) -> str:
        return f"{cls.__name__} {name}"

    @staticmethod
    def count(items: list[int]) -> int:
        return len(items)

    def read(self, key: str) -> str:
        return key


class Derived(Platform):
    pass


def shout(original: Callable[..., Any]) -> Callable[..., Any]:
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return f"{original(*args, **kwargs)}!"

    return replacement


@pytest.fixture
def module() -> Iterator[ModuleType]:
    module = ModuleType("patched_module")
    body = {name: value for name, value in vars(Platform).items() if name in ("choose", "count", "read")}
    owner = type("Platform", (), body)
    vars(module).update(
        greet=lambda name: f"hello {name}", Platform=owner, Derived=type("Derived", (owner,), {})
    )
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def patch(symbol: str, *parameters: str, name: str = "shout") -> Patch:
    return Patch(name, "patched_module", symbol, parameters, shout, "why", "0.32", "none", "never")


def test_a_function_is_replaced_and_delegates(module: ModuleType) -> None:
    ours = patch("greet", "name")
    assert not is_applied(ours)
    apply(ours)
    assert is_applied(ours)
    assert module.greet("you") == "hello you!"


@pytest.mark.parametrize(
    ("symbol", "parameters", "kind", "argument", "answer"),
    [
        ("Platform.choose", ("cls", "name"), classmethod, "x", "Platform x!"),
        ("Platform.count", ("items",), staticmethod, [1, 2], "2!"),
    ],
)
def test_class_and_static_methods_stay_what_they_are(
    module: ModuleType, symbol: str, parameters: tuple[str, ...], kind: type, argument: Any, answer: str
) -> None:
    apply(patch(symbol, *parameters))
    name = symbol.partition(".")[2]
    assert isinstance(vars(module.Platform)[name], kind)
    assert getattr(module.Platform, name)(argument) == answer


def test_a_method_is_replaced_and_subclasses_see_it(module: ModuleType) -> None:
    apply(patch("Platform.read", "self", "key"))
    assert module.Derived().read("k") == "k!"


def test_a_second_application_is_refused_and_names_the_owner(module: ModuleType) -> None:
    apply(patch("greet", "name", name="first"))
    held = module.greet
    with pytest.raises(PatchError, match=r"patched_module:greet is patched already, by 'first'"):
        apply(patch("greet", "name", name="second"))
    assert module.greet is held


def test_a_changed_signature_is_refused_and_shown(module: ModuleType) -> None:
    held = module.greet
    with pytest.raises(PatchError, match=r"takes \('name',\), and 'shout' knows \('name', 'greeting'\)"):
        apply(patch("greet", "name", "greeting"))
    assert module.greet is held


@pytest.mark.parametrize("symbol", ["farewell", "Platform.absent", "Absent.choose"])
@pytest.mark.usefixtures("module")
def test_a_missing_symbol_is_refused_by_name(symbol: str) -> None:
    with pytest.raises(PatchError, match=f"vLLM has no patched_module:{symbol}"):
        apply(patch(symbol, "name"))


def test_a_missing_module_is_refused_by_name() -> None:
    with pytest.raises(PatchError, match="vLLM has no patched_module:greet"):
        apply(patch("greet", "name"))
