"""The contract: it holds for the installed vLLM, notices what could break, and its page is the kept outcome's."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tools.vllm_contract.checks import file_checks, patch_checks
from tools.vllm_contract.drift import differences, subclassed
from tools.vllm_contract.page import PAGE, page
from tools.vllm_contract.result import contract, load, our_files
from tools.vllm_contract.reviewed import REVIEWED
from tools.vllm_contract.source import VllmSource
from vllm_redknot.patches.ledger import Patch
from vllm_redknot.plugin import SUPPORTED_VLLM

THEIRS = '''
from abc import abstractmethod
from dataclasses import dataclass, field
from vllm.inner import Base as Renamed

LIMIT = 3

@dataclass
class Spec:
    block_size: int
    heads: int = 1

class Config:
    spec: Spec
    retries: int | None = None

    def __init__(self, name: str):
        self.name = name

class Manager(Renamed):
    kind: str = "plain"

    def __init__(self, spec: Spec, **kwargs):
        self.spec = spec

    def grow(self, request_id: str, tokens: int, *, eager: bool = False) -> int:
        return tokens

    @property
    def free(self) -> int:
        return 0

    @abstractmethod
    def release(self, request_id: str) -> None: ...

def plan(config, sizes, limit=3):
    """Plans."""
    return sizes
'''
INNER = """
class Base:
    def inherited(self, value):
        return value
"""
OURS = """
from vllm.core import Manager, Spec, plan, LIMIT

class Ours(Manager):
    kind = "ours"

    def __init__(self, spec: Spec, **kwargs):
        super().__init__(spec, **kwargs)
        self.mine = 1

    def grow(self, request_id, tokens, *, eager=False, extra=None):
        self._helper()
        return super().grow(request_id, tokens) + self.mine + self.spec.block_size

    def release(self, request_id):
        return self.inherited(self.free)

    def _helper(self):
        fields = {"block_size": 2}
        return plan(Spec(**fields), [], limit=LIMIT)
"""


def write_vllm(folder: Path, core: str = THEIRS, inner: str = INNER) -> VllmSource:
    """A vLLM of two modules."""
    for name, text in {
        "__init__": "",
        "_version": "__version__ = version = '9.1.0'",
        "core": core,
        "inner": inner,
    }.items():
        path = folder / "vllm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return VllmSource.open(folder)


def problems(folder: Path, core: str = THEIRS, inner: str = INNER, ours: str = OURS) -> list[str]:
    """What of `ours` does not fit."""
    path = folder / "ours.py"
    path.write_text(ours)
    source = write_vllm(folder, core, inner)
    return [
        f"{check.kind} {check.symbol}: {check.problem}"
        for check in file_checks(path, source)
        if check.problem
    ]


def test_code_that_fits_has_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path) == []


@pytest.mark.parametrize(
    ("was", "becomes", "found"),
    [
        ("def plan(", "def planned(", "import vllm.core:plan: there is no such name"),
        ("LIMIT = 3", "", "import vllm.core:LIMIT"),
        ("limit=3", "bound=3", "call vllm.core:plan()"),
        ("config, sizes", "config, sizes, must", "call vllm.core:plan()"),
        ("block_size: int", "page_size: int", "call vllm.core:Spec()"),
        ("block_size: int", "page_size: int", "attribute vllm.core:Spec.block_size"),
        ("request_id: str, tokens", "request_id: str, amount", "override vllm.core:Manager.grow"),
        ("tokens: int, *", "tokens: int, blocks: int, *", "override vllm.core:Manager.grow"),
        ("eager: bool = False", "lazy: bool = False", "override vllm.core:Manager.grow"),
        ("def grow", "def extend", "override vllm.core:Manager.grow: Ours overrides it"),
        ("    def grow", "    @property\n    def grow", "call vllm.core:Manager.grow(): is a property"),
        ("def free", "def available", "attribute vllm.core:Manager.free"),
        ('kind: str = "plain"', "", "override vllm.core:Manager.kind"),
        ("def release", "def finish", "abstract Manager.finish"),
        ("self.spec = spec", "pass", "attribute vllm.core:Manager.spec"),
    ],
)
def test_a_change_in_vllm_is_noticed(tmp_path: Path, was: str, becomes: str, found: str) -> None:
    assert was in THEIRS
    said = problems(tmp_path, THEIRS.replace(was, becomes))
    assert any(line.startswith(found) for line in said)


def test_a_change_in_a_base_class_of_another_module_is_noticed(tmp_path: Path) -> None:
    [line] = problems(tmp_path, inner=INNER.replace("inherited", "moved"))
    assert line.startswith("attribute vllm.core:Manager.inherited")


@pytest.mark.parametrize(
    ("symbol", "parameters", "problem"),
    [
        ("plan", ("config", "sizes", "limit"), None),
        ("plan", ("config", "sizes"), "takes"),
        ("Manager.grow", ("self", "request_id", "tokens", "eager"), None),
        ("Manager.shrink", ("self",), "there is no such function"),
        ("LIMIT", (), "there is no such function"),
    ],
)
def test_patched_functions_are_compared_by_name(
    tmp_path: Path, symbol: str, parameters: tuple[str, ...], problem: str | None
) -> None:
    patch = Patch("p", "vllm.core", symbol, parameters, lambda original: original, "", "", "", "")
    [check] = patch_checks([patch], write_vllm(tmp_path))
    assert check.problem is None if problem is None else problem in str(check.problem)


def test_differences_are_of_meaning_and_docstrings_are_not(tmp_path: Path) -> None:
    (tmp_path / "ours.py").write_text(OURS)
    classes = subclassed([tmp_path / "ours.py"])
    assert classes == {("vllm.core", "Manager")}
    old = write_vllm(tmp_path / "old")
    newer = THEIRS.replace("return 0", "return 1").replace('"""Plans."""', '"""Plans anew."""')
    newer = newer.replace("class Manager(Renamed):", "class Manager(Renamed):\n    nulls: int = 0")
    new = write_vllm(tmp_path / "new", newer, INNER.replace("inherited", "moved"))
    plan = ("vllm.core:plan", "vllm.core:plan")
    assert list(differences(old, new, classes, [plan])) == [
        "Manager.free changed",
        "Manager.inherited gone",
        "Manager.moved new",
        "Manager.nulls new",
    ]
    shorter = write_vllm(tmp_path / "shorter", THEIRS.replace("return sizes", "return []"))
    assert list(differences(old, shorter, [], [plan])) == ["plan changed"]


def test_a_folder_without_vllm_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        VllmSource.open(tmp_path)


@pytest.mark.slow
def test_the_installed_vllm_keeps_the_contract() -> None:
    import vllm

    source = VllmSource.open(Path(vllm.__file__).parent.parent)
    assert source.version == vllm.__version__
    assert [check for check in contract(source, our_files()) if check.problem] == []


@pytest.mark.slow
def test_every_symbol_we_touch_was_checked_on_every_supported_release() -> None:
    import vllm

    kept = load()
    assert [release["version"].rsplit(".", 1)[0] for release in kept["releases"]] == list(SUPPORTED_VLLM)
    source = VllmSource.open(Path(vllm.__file__).parent.parent)
    # Attributes and calls change with every edit; what decides whether the plugin loads and is called must be known.
    touched = {
        f"{check.kind} {check.symbol}"
        for check in contract(source, our_files())
        if check.kind in ("import", "override", "abstract", "patch")
    }
    assert touched - set(kept["symbols"]) == set(), "run make contract"


def test_the_kept_outcome_has_no_problem_and_no_unread_difference() -> None:
    kept = load()
    assert [release["problems"] for release in kept["releases"]] == [[]] * len(kept["releases"])
    assert [drift["unreviewed"] for drift in kept["drift"]] == [[]] * len(kept["drift"])
    assert all(verdict for verdicts in REVIEWED.values() for verdict in verdicts.values())


def test_the_page_is_made_from_the_kept_outcome_and_the_ledger() -> None:
    assert PAGE.read_text() == page(load()), "run make contract"
