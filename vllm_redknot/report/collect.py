"""What a folder holds: documents the report knows, and a line on everything it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from vllm_redknot.heads import native
from vllm_redknot.heads.documents import decode, parse_object, read_bytes, shown
from vllm_redknot.heads.errors import HeadFileError, HeadProfileError
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.report.documents import BenchDocument, EvalDocument, ProfileDocument

MAX_FILES: Final = 64
FORMAT: Final = 1
MODELS: Final[dict[str, type[BaseModel]]] = {
    "redknot.bench": BenchDocument,
    "redknot.eval": EvalDocument,
    "redknot.profile": ProfileDocument,
}


@dataclass
class Collected:
    """Documents by kind, each with the name of its file, and warnings."""

    heads: list[tuple[str, HeadProfile]] = field(default_factory=list)
    benches: list[tuple[str, BenchDocument]] = field(default_factory=list)
    evals: list[tuple[str, EvalDocument]] = field(default_factory=list)
    profiles: list[tuple[str, ProfileDocument]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Files that are in the report, each once."""
        every = [*self.heads, *self.profiles, *self.evals, *self.benches]
        return list(dict.fromkeys(name for name, _ in every))


def collect(folder: Path) -> Collected:
    """Read the *.json files of a folder, not of folders in it. A file that cannot be used is a warning.

    Raises:
        OSError: the folder cannot be listed.
    """
    found = Collected()
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    if len(paths) > MAX_FILES:
        found.warnings.append(
            f"{len(paths)} JSON files: only the first {MAX_FILES} by name are in the report"
        )
    for path in paths[:MAX_FILES]:
        try:
            _add(found, path, parse_object(decode(read_bytes(path), path), path))
        except HeadFileError as error:
            found.warnings.append(f"{_name(path)} is left out: {error.place}: {error.problem}")
        except HeadProfileError as error:
            found.warnings.append(f"{_name(path)} is left out: {error}")
    return found


def _name(path: Path) -> str:
    return path.name if len(path.name) <= 100 else path.name[:97] + "..."


def _add(found: Collected, path: Path, document: Mapping[str, Any]) -> None:
    name = _name(path)
    if native.matches(document):
        profile = native.read(path, document)
        found.heads.append((name, profile))
        for section, value in profile.sections.items():
            if isinstance(value, dict) and value.get("kind") == "redknot.profile":
                _add_known(found, f"{name}, section {section[:60]}", value)
        return
    _add_known(found, name, document)


def _add_known(found: Collected, name: str, document: Mapping[str, Any]) -> None:
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in MODELS:
        known = ", ".join([native.FORMAT, *MODELS])
        found.warnings.append(
            f"{name} is left out: its kind is {shown(kind)}, and this release knows {known}"
        )
        return
    if document.get("format") != FORMAT:
        found.warnings.append(
            f"{name} is left out: {kind} of format {shown(document.get('format'))}, and this release knows {FORMAT}"
        )
        return
    try:
        read = MODELS[kind].model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))[:120] or "the document"
        found.warnings.append(
            f"{name} is left out: {shown(place)} is {shown(first['input'])}: {first['msg'][:200]}"
        )
        return
    if isinstance(read, BenchDocument):
        found.benches.append((name, read))
    elif isinstance(read, EvalDocument):
        found.evals.append((name, read))
    elif isinstance(read, ProfileDocument):
        found.profiles.append((name, read))
