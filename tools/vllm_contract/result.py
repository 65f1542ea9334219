"""Runs the contract on releases and keeps the outcome as JSON, which docs/compatibility.md is made from."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools.vllm_contract.checks import Check, declared_checks, file_checks, patch_checks
from tools.vllm_contract.drift import differences, subclassed
from tools.vllm_contract.reviewed import REVIEWED
from tools.vllm_contract.source import VllmSource
from vllm_redknot.patches import every_patch

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("vllm_redknot", "kernels", "patches")
RESULT = ROOT / "docs" / "compatibility.json"


def our_files() -> list[Path]:
    """The installed package's source."""
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def contract(source: VllmSource, files: Sequence[Path]) -> list[Check]:
    """All checks on one release, each symbol once, failures before successes."""
    found: dict[tuple[str, str], Check] = {}
    for check in _all_checks(source, files):
        key = (check.kind, check.symbol)
        if key not in found or check.problem:
            found[key] = check
    return [found[key] for key in sorted(found)]


def _all_checks(source: VllmSource, files: Sequence[Path]) -> Iterator[Check]:
    yield from patch_checks(every_patch(source.has_module), source)
    yield from declared_checks(source)
    for path in files:
        yield from file_checks(path, source)


def unreviewed(old: VllmSource, new: VllmSource, files: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Differences between two releases that matter to us: those with a verdict, and those without."""
    calls = [c.symbol.removesuffix("()") for c in contract(old, files) if c.kind == "call"]
    patched = zip(every_patch(old.has_module), every_patch(new.has_module), strict=True)
    bodies = {(symbol, symbol) for symbol in calls} | {
        (before.target, after.target) for before, after in patched
    }
    found = list(dict.fromkeys(differences(old, new, subclassed(files), bodies)))
    verdicts = REVIEWED.get((_release(old.version), _release(new.version)), {})
    return [item for item in found if item in verdicts], [item for item in found if item not in verdicts]


def _release(version: str) -> str:
    return ".".join(version.split(".")[:2])


def run(paths: Sequence[Path]) -> dict[str, Any]:
    """The outcome for releases, oldest first, as JSON data."""
    files = our_files()
    sources = [VllmSource.open(path) for path in paths]
    releases: list[dict[str, Any]] = []
    symbols: set[str] = set()
    for path, source in zip(paths, sources, strict=True):
        checks = contract(source, files)
        symbols |= {f"{check.kind} {check.symbol}" for check in checks}
        releases.append(
            {
                "version": source.version,
                "wheel": path.name if path.is_file() else None,
                "sha256": _sha256(path) if path.is_file() else None,
                "checks": dict(Counter(check.kind for check in checks)),
                "problems": [f"{c.kind} {c.symbol}: {c.problem}" for c in checks if c.problem],
            }
        )
    drift = []
    for old, new in pairwise(sources):
        known, unknown = unreviewed(old, new, files)
        verdicts = REVIEWED.get((_release(old.version), _release(new.version)), {})
        drift.append(
            {
                "from": old.version,
                "to": new.version,
                "reviewed": {item: verdicts[item] for item in known},
                "unreviewed": unknown,
            }
        )
    return {"releases": releases, "drift": drift, "symbols": sorted(symbols)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load() -> dict[str, Any]:
    """The outcome that the repository keeps."""
    found: dict[str, Any] = json.loads(RESULT.read_text())
    return found


def save(outcome: dict[str, Any]) -> None:
    """Keep an outcome in the repository."""
    RESULT.write_text(json.dumps(outcome, indent=1) + "\n")
