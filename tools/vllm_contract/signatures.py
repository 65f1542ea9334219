"""Signatures from source text: whether a call binds, and whether an override accepts what its base accepts."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from inspect import Parameter

from tools.vllm_contract.classes import ClassView, decorators
from tools.vllm_contract.source import Function

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def signature_of(function: Function) -> inspect.Signature:
    """The signature as written, `self` and `cls` included."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    parameters = [
        _parameter(argument.arg, Parameter.POSITIONAL_OR_KEYWORD, index >= required)
        for index, argument in enumerate(positional)
    ]
    if arguments.vararg:
        parameters.append(Parameter(arguments.vararg.arg, Parameter.VAR_POSITIONAL))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        parameters.append(_parameter(argument.arg, Parameter.KEYWORD_ONLY, default is not None))
    if arguments.kwarg:
        parameters.append(Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _parameter(name: str, kind: inspect._ParameterKind, optional: bool) -> Parameter:
    return Parameter(name, kind, default=None if optional else Parameter.empty)


def constructor(view: ClassView) -> inspect.Signature:
    """How a class is called, `self` left out. Fields of a generated constructor count as optional."""
    own = view.members.get("__init__")
    if view.is_dataclass or own is None or own.function is None:
        return inspect.Signature(
            [_parameter(name, Parameter.POSITIONAL_OR_KEYWORD, True) for name in view.fields()]
        )
    return without_first(signature_of(own.function))


def without_first(signature: inspect.Signature) -> inspect.Signature:
    """A method's signature as its callers see it."""
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def bound(function: Function) -> inspect.Signature:
    """The signature for a call through an instance or a class."""
    signature = signature_of(function)
    return signature if "staticmethod" in decorators(function) else without_first(signature)


def call_problem(signature: inspect.Signature, call: ast.Call, extra: Sequence[str] = ()) -> str | None:
    """Why a call does not bind, or None. `extra`: keywords from a dict; an unknown dict may hold anything."""
    keywords = [keyword.arg for keyword in call.keywords if keyword.arg is not None] + list(extra)
    unknown = any(keyword.arg is None for keyword in call.keywords) and not extra
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    arguments = [None] * sum(not isinstance(argument, ast.Starred) for argument in call.args)
    bind = signature.bind_partial if unknown or starred else signature.bind
    try:
        bind(*arguments, **dict.fromkeys(keywords))
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return None


def override_problem(ours: inspect.Signature, base: inspect.Signature) -> str | None:
    """Why calls written for `base` do not fit `ours`, or None. Positional parameters must have the same names."""
    theirs = list(base.parameters.values())
    mine = list(ours.parameters.values())
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in mine):
        return None
    positions = [parameter.name for parameter in mine if parameter.kind in POSITIONAL]
    wanted = [parameter.name for parameter in theirs if parameter.kind in POSITIONAL]
    missing = [p.name for p in theirs if p.kind is Parameter.KEYWORD_ONLY and p.name not in ours.parameters]
    known = set(base.parameters)
    required = [
        p.name
        for p in mine
        if p.name not in known and p.default is p.empty and p.kind is not p.VAR_POSITIONAL
    ]
    if positions[: len(wanted)] != wanted or missing or required:
        return f"vLLM's is {base}, ours {ours}"
    return None
