"""vLLM's classes as their source text has them: ancestors, attributes, generated constructors."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache, cached_property

from tools.vllm_contract.source import Definition, Function, VllmSource, names_defined


@cache
def class_view(source: VllmSource, definition: Definition) -> ClassView:
    """A vLLM class with its ancestors."""
    return ClassView(source, definition)


@dataclass(frozen=True)
class Member:
    """One attribute of a class: `node` is the method, or the statement that makes the attribute."""

    owner: Definition
    name: str
    node: ast.stmt
    annotation: ast.expr | None  # the attribute's, or a property's result

    @property
    def function(self) -> Function | None:
        """The method, unless the attribute is none or a property."""
        if isinstance(self.node, Function) and not self.is_property:
            return self.node
        return None

    @property
    def is_property(self) -> bool:
        """Whether it is read as an attribute although it is written as a method."""
        return isinstance(self.node, Function) and bool(
            decorators(self.node) & {"property", "cached_property", "functools.cached_property"}
        )

    @property
    def is_abstract(self) -> bool:
        """Whether subclasses must define it."""
        return isinstance(self.node, Function) and "abstractmethod" in decorators(self.node)


class ClassView:
    """A vLLM class and the attributes it has, its ancestors' included."""

    def __init__(self, source: VllmSource, definition: Definition) -> None:
        self.source = source
        self.definition = definition

    @cached_property
    def ancestors(self) -> tuple[Definition, ...]:
        """The class and its vLLM bases, depth first."""
        assert isinstance(self.definition.node, ast.ClassDef)
        found = [self.definition]
        for base in self.definition.node.bases:
            name = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(name, ast.Name):
                definition = self.source.find(self.definition.module, name.id)
                if definition and definition.is_class:
                    found += class_view(self.source, definition).ancestors
        return tuple(dict.fromkeys(found))

    @cached_property
    def members(self) -> dict[str, Member]:
        """By name; the nearest definition counts, and one in a class body before one in a method."""
        found: dict[str, Member] = {}
        for owner in self.ancestors:
            assert isinstance(owner.node, ast.ClassDef)
            for statement in owner.node.body:
                for member in _members(owner, statement):
                    found.setdefault(member.name, member)
            for method in owner.node.body:
                if isinstance(method, Function):
                    for member in _set_on_self(owner, method):
                        found.setdefault(member.name, member)
        return found

    @cached_property
    def is_dataclass(self) -> bool:
        """Whether the constructor is generated from annotated fields."""
        markers = ("dataclass", "config")
        bases = {ast.unparse(base) for owner in self.ancestors for base in _class(owner).bases}
        return "NamedTuple" in bases or any(
            name.split("(")[0].split(".")[-1] in markers
            for owner in self.ancestors
            for name in decorators(_class(owner))
        )

    def fields(self) -> list[str]:
        """A generated constructor's parameters, bases first."""
        names = [
            statement.target.id
            for owner in reversed(self.ancestors)
            for statement in _class(owner).body
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            if "ClassVar" not in ast.unparse(statement.annotation)
        ]
        return list(dict.fromkeys(names))


def _class(definition: Definition) -> ast.ClassDef:
    assert isinstance(definition.node, ast.ClassDef)
    return definition.node


def decorators(node: Function | ast.ClassDef) -> set[str]:
    """Decorators as written."""
    return {ast.unparse(decorator) for decorator in node.decorator_list}


def _members(owner: Definition, statement: ast.stmt) -> list[Member]:
    annotation = statement.annotation if isinstance(statement, ast.AnnAssign) else None
    if isinstance(statement, Function):
        annotation = statement.returns
    return [Member(owner, name, statement, annotation) for name in names_defined(statement)]


def _set_on_self(owner: Definition, method: Function) -> list[Member]:
    """Attributes that a method sets; one set to a parameter has the parameter's annotation."""
    annotations = {
        argument.arg: argument.annotation
        for argument in ast.walk(method.args)
        if isinstance(argument, ast.arg)
    }
    found = []
    for node in ast.walk(method):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            for part in ast.walk(target):
                if (
                    isinstance(part, ast.Attribute)
                    and isinstance(part.value, ast.Name)
                    and part.value.id == "self"
                ):
                    assert isinstance(node, ast.Assign | ast.AnnAssign)
                    annotation = node.annotation if isinstance(node, ast.AnnAssign) else None
                    if annotation is None and isinstance(node.value, ast.Name):
                        annotation = annotations.get(node.value.id)
                    found.append(Member(owner, part.attr, node, annotation))
    return found
