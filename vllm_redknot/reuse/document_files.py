"""Text files as documents: token ids as they stand in the middle of a prompt, or why a file is none.

A document's tokens are those of its text alone, without the tokens that a tokenizer puts before a text (Llama's
<|begin_of_text|>): in a prompt a document stands behind others, where there are none, and stored tokens are found only
where a prompt has the same. What a first token does for those after it, a moved document gets from its boundary, which
is recomputed. One that always begins the prompt may have its opening tokens (`opening`): then all of it is found.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

MAX_FILE_BYTES: Final = 16 * 2**20


class Tokenizer(Protocol):
    """What is asked of the `tokenizers` package."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Any:
        """Has `ids`."""


@dataclass(frozen=True)
class Document:
    """One file: token ids (int32)."""

    path: Path
    tokens: array[int]

    def to_json(self) -> dict[str, Any]:
        """The line that the adding process reads."""
        return {"tokens": self.tokens.tolist()}


@dataclass(frozen=True)
class Skipped:
    """A file that is no document, and what would be one."""

    path: Path
    problem: str


def read_documents(
    paths: Sequence[Path], tokenizer: Tokenizer, opening: Sequence[int], shortest: int, longest: int
) -> Iterator[Document | Skipped]:
    """Every file in its turn. Nothing is raised for a file that cannot be used.

    Args:
        tokenizer: the model's.
        opening: token ids put before each text.
        shortest, longest: tokens that a document may have, `opening` included.
    """
    for path in paths:
        text = read_text(path)
        if isinstance(text, Skipped):
            yield text
            continue
        ids = array("i", [*opening, *tokenizer.encode(text, add_special_tokens=False).ids])
        if len(ids) < shortest:
            yield Skipped(
                path, f"has {len(ids)} tokens: documents of less than {shortest} are never looked for"
            )
        elif len(ids) > longest:
            yield Skipped(
                path, f"has {len(ids)} tokens: give at most {longest}, or cut it into several files"
            )
        else:
            yield Document(path, ids)


def read_text(path: Path) -> str | Skipped:
    """The text of a regular UTF-8 file of at most `MAX_FILE_BYTES`, a byte-order mark left out."""
    try:
        # Before it is opened: to open a pipe is to wait for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            return Skipped(path, "is no regular file: give files of text")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return Skipped(path, f"cannot be read: {error.strerror or error}")
    if len(content) > MAX_FILE_BYTES:
        return Skipped(path, f"has more than {MAX_FILE_BYTES >> 20} MiB: cut it into several files")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Skipped(path, f"is no UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}")
    return text if text.strip() else Skipped(path, "is empty")
