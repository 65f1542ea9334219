"""What our source files need of vLLM, derived from them: imports, attributes, calls, overrides, patches."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tools.vllm_contract.classes import ClassView, class_view
from tools.vllm_contract.declared import OURS, PYTHON_ATTRIBUTES, RECEIVERS, REQUIRED
from tools.vllm_contract.signatures import bound, call_problem, constructor, override_problem, signature_of
from tools.vllm_contract.source import Definition, Function, VllmSource
from vllm_redknot.patches.ledger import Patch


@dataclass(frozen=True)
class Check:
    """One thing we need. `symbol` names it independently of the release; `problem` is why this release lacks it."""

    kind: str
    symbol: str
    problem: str | None = None


@dataclass(frozen=True)
class Instance:
    """What an expression holds: an instance of a vLLM class, or the class itself; `own` are names we add to it."""

    view: ClassView
    own: frozenset[str] = frozenset()


def patch_checks(patches: Iterable[Patch], source: VllmSource) -> Iterator[Check]:
    """Every patched symbol exists and takes the parameters its patch was written for."""
    for patch in patches:
        owner, _, name = patch.symbol.rpartition(".")
        found = source.find(patch.module, owner or name)
        node = found.node if found else None
        if found and owner:
            member = class_view(source, found).members.get(name)
            node = member.node if member else None
        check = Check("patch", f"{patch.module}:{patch.symbol}")
        if not isinstance(node, Function):
            yield replace(check, problem="there is no such function")
        elif (parameters := tuple(signature_of(node).parameters)) != patch.parameters:
            yield replace(check, problem=f"takes {parameters}, the patch knows {patch.parameters}")
        else:
            yield check


def declared_checks(source: VllmSource) -> Iterator[Check]:
    """What we read in ways that cannot be derived."""
    for symbol in REQUIRED:
        module, _, path = symbol.partition(":")
        owner, _, name = path.partition(".")
        found = source.find(module, owner)
        has = found and found.is_class and name in class_view(source, found).members
        yield Check("attribute", symbol, None if has else "there is no such attribute")


def file_checks(path: Path, source: VllmSource) -> list[Check]:
    """Everything one of our files needs."""
    tree = ast.parse(path.read_text())
    return sorted(set(_FileChecks(tree, source).run()), key=lambda check: (check.kind, check.symbol))


def _is_other_class(annotation: ast.expr | None) -> bool:
    """Whether a parameter is annotated with a class, which then is not vLLM's whatever the parameter's name."""
    return isinstance(annotation, ast.Name) and annotation.id != "Any"


def _is_vllm(module: str | None) -> bool:
    return module is not None and (module == "vllm" or module.startswith("vllm."))


class _FileChecks:
    """One file against one release."""

    def __init__(self, tree: ast.Module, source: VllmSource) -> None:
        self.tree, self.source = tree, source
        self.imported: dict[str, Definition] = {}
        self.found: list[Check] = []

    def run(self) -> list[Check]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and _is_vllm(node.module):
                self._import(node)
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                self._class(node)
            elif isinstance(node, Function):
                self._function(node, None)
        return self.found

    def _say(self, kind: str, symbol: str, problem: str | None = None) -> None:
        self.found.append(Check(kind, symbol, problem))

    def _import(self, node: ast.ImportFrom) -> None:
        assert node.module is not None
        for alias in node.names:
            definition = self.source.find(node.module, alias.name)
            missing = None if definition else "there is no such name"
            self._say("import", f"{node.module}:{alias.name}", missing)
            if definition:
                self.imported[alias.asname or alias.name] = definition

    def _view(self, name: str) -> ClassView | None:
        definition = self.imported.get(name)
        return class_view(self.source, definition) if definition and definition.is_class else None

    def _class(self, node: ast.ClassDef) -> None:
        names = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
        views = [view for name in names if isinstance(name, ast.Name) and (view := self._view(name.id))]
        if not views:
            for statement in node.body:
                if isinstance(statement, Function):
                    self._function(statement, None)
            return
        [view] = views
        own = _own_names(node)
        for name, statement in own.items():
            self._own_member(node.name, name, statement, view)
        for name, member in view.members.items():
            if member.is_abstract and name not in own:
                problem = f"abstract in {member.owner.name}, and {node.name} does not define it"
                self._say("abstract", f"{view.definition.name}.{name}", problem)
        instance = Instance(view, frozenset(own) | _set_names(node))
        for statement in node.body:
            if isinstance(statement, Function):
                self._function(statement, instance)

    def _own_member(self, owner: str, name: str, statement: ast.stmt, view: ClassView) -> None:
        private = name.startswith("_") and name not in view.members
        if private or f"{owner}.{name}" in OURS:
            return
        symbol = f"{view.definition.module}:{view.definition.name}.{name}"
        member = view.members.get(name)
        problem = None
        if member is None:
            problem = f"{owner} overrides it, and there is no such attribute (is {name} ours alone? Then declare it)"
        elif isinstance(statement, Function) and member.function is not None:
            problem = override_problem(signature_of(statement), signature_of(member.function))
        elif isinstance(statement, Function) != isinstance(member.node, Function):
            problem = "one is a method, the other is not"
        self._say("override", symbol, problem)

    def _function(self, node: Function, instance: Instance | None) -> None:
        types = self._parameter_types(node, instance)
        dicts: dict[str, list[str]] = {}
        for part in ast.walk(node):
            if isinstance(part, ast.Assign):
                self._learn(part, types, dicts)
        for part in ast.walk(node):
            if isinstance(part, ast.Call) and ast.unparse(part.func) == "isinstance":
                self._narrow(part, types)
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute):
                self._type(part, types, report=True)
            elif isinstance(part, ast.Call):
                self._call(part, types, dicts)

    def _parameter_types(self, node: Function, instance: Instance | None) -> dict[str, Instance]:
        types: dict[str, Instance] = {}
        arguments = [part for part in ast.walk(node) if isinstance(part, ast.arg)]
        for argument in arguments:
            view = self._annotated(argument.annotation)
            if view is None and argument.arg in RECEIVERS and not _is_other_class(argument.annotation):
                module, name = RECEIVERS[argument.arg].split(":")
                definition = self.source.find(module, name)
                view = class_view(self.source, definition) if definition else None
            if view is not None:
                types[argument.arg] = Instance(view)
        if instance is not None:
            types["self"] = types["cls"] = instance
        return types

    def _annotated(self, annotation: ast.expr | None) -> ClassView | None:
        return self._view(annotation.id) if isinstance(annotation, ast.Name) else None

    def _learn(self, node: ast.Assign, types: dict[str, Instance], dicts: dict[str, list[str]]) -> None:
        pairs: list[tuple[ast.expr, ast.expr]] = [(target, node.value) for target in node.targets]
        if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
        for name, value in pairs:
            if not isinstance(name, ast.Name):
                continue
            if isinstance(value, ast.Dict):
                dicts[name.id] = [str(key.value) for key in value.keys if isinstance(key, ast.Constant)]
            elif instance := self._type(value, types):
                types[name.id] = instance

    def _narrow(self, test: ast.Call, types: dict[str, Instance]) -> None:
        """What `isinstance` tests for holds in the whole function; a class of ours may have more than vLLM's."""
        name, cls = test.args
        if isinstance(name, ast.Name) and name.id in types and isinstance(cls, ast.Name):
            view = self._view(cls.id)
            if view:
                types[name.id] = Instance(view)
            else:
                del types[name.id]

    def _type(self, node: ast.expr, types: Mapping[str, Instance], report: bool = False) -> Instance | None:
        """What an expression holds, if that is a vLLM class's instance. Says so of the attributes on the way."""
        if isinstance(node, ast.Name):
            if node.id in types:
                return types[node.id]
            view = self._view(node.id)
            return Instance(view) if view else None
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super" and "self" in types:
            return Instance(types["self"].view)
        if not isinstance(node, ast.Attribute):
            return None
        base = self._type(node.value, types)
        if base is None or node.attr in base.own | PYTHON_ATTRIBUTES:
            return None
        view = base.view
        member = view.members.get(node.attr)
        if report:
            missing = None if member else "there is no such attribute"
            self._say("attribute", f"{view.definition.module}:{view.definition.name}.{node.attr}", missing)
        return self._result(member.owner.module, member.annotation) if member else None

    def _result(self, module: str, annotation: ast.expr | None) -> Instance | None:
        """The class an annotation names; the first of a union."""
        if annotation is None:
            return None
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        for part in ast.walk(annotation):
            if isinstance(part, ast.Subscript):
                return None
            if isinstance(part, ast.Name):
                definition = self.source.find(module, part.id)
                if definition and definition.is_class:
                    return Instance(class_view(self.source, definition))
        return None

    def _call(self, call: ast.Call, types: Mapping[str, Instance], dicts: Mapping[str, list[str]]) -> None:
        spread = [keyword.value for keyword in call.keywords if keyword.arg is None]
        extra = [key for value in spread if isinstance(value, ast.Name) for key in dicts.get(value.id, [])]
        if isinstance(call.func, ast.Name) and (definition := self.imported.get(call.func.id)):
            symbol = f"{definition.module}:{definition.name}"
            if definition.is_class:
                signature = constructor(class_view(self.source, definition))
            elif isinstance(definition.node, Function):
                signature = signature_of(definition.node)
            else:
                return
        elif isinstance(call.func, ast.Attribute) and (base := self._type(call.func.value, types)):
            member = base.view.members.get(call.func.attr)
            if call.func.attr in base.own or member is None:
                return
            if member.is_property:
                self._say(
                    "call", f"{member.owner.module}:{member.owner.name}.{member.name}()", "is a property"
                )
            if member.function is None:
                return
            symbol = f"{member.owner.module}:{member.owner.name}.{member.name}"
            signature = bound(member.function)
        else:
            return
        self._say("call", f"{symbol}()", call_problem(signature, call, extra))


def _own_names(node: ast.ClassDef) -> dict[str, ast.stmt]:
    """What a class of ours defines in its body."""
    found: dict[str, ast.stmt] = {}
    for statement in node.body:
        if isinstance(statement, Function):
            found[statement.name] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = statement
        elif isinstance(statement, ast.Assign):
            found.update({t.id: statement for t in statement.targets if isinstance(t, ast.Name)})
    return found


def _set_names(node: ast.ClassDef) -> frozenset[str]:
    """What its methods set on `self`."""
    stores = [
        part for part in ast.walk(node) if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
    ]
    return frozenset(
        part.attr for part in stores if isinstance(part.value, ast.Name) and part.value.id == "self"
    )
