"""What is wrong, and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """`broken` makes the doctor's exit status 1; `note` is worth knowing and harms nothing."""

    severity: Literal["broken", "note"]
    what: str
    remedy: str


def broken(what: str, remedy: str) -> Finding:
    """Something that keeps REDKNOT from working as it should."""
    return Finding("broken", what, remedy)


def note(what: str, remedy: str) -> Finding:
    """Something that works, if not in the best way."""
    return Finding("note", what, remedy)
