"""Reading of untrusted head-class files: bounded bytes, strict JSON, errors that name the place."""

import json
import math
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from vllm_redknot.heads.errors import HeadFileError
from vllm_redknot.heads.profile import MAX_HEADS, MAX_LAYERS, MAX_POSITIONS

MAX_BYTES: Final = 16 * 2**20
MAX_DEPTH: Final = 32
T = TypeVar("T")


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most MAX_BYTES. Raises HeadFileError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise HeadFileError(
                path, "the path", "is not a regular file", "Give the path of a head-class file."
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, HeadFileError):
            raise
        problem = getattr(error, "strerror", None) or str(error)
        raise HeadFileError(path, "the path", problem, "Check that it exists and can be read.") from error
    if len(content) > MAX_BYTES:
        raise HeadFileError(
            path, "the file", f"is larger than {MAX_BYTES} bytes", "No head-class file is that large."
        )
    return content


def decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HeadFileError(
            path, f"byte {error.start}", "is not UTF-8", "Save the file as UTF-8 text."
        ) from error


def parse_object(text: str, path: Path) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or infinity, at most MAX_DEPTH deep. Raises HeadFileError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in items:
            if key in result:
                place = f"key {shown(key)}"
                raise HeadFileError(path, place, "appears twice in one object", "Keep one of them.")
            result[key] = value
        return result

    def number(literal: str) -> float:
        value = float(literal)
        if not math.isfinite(value):
            raise HeadFileError(
                path, f"the number {shown(literal)}", "is not finite", "Give a finite number."
            )
        return value

    try:
        document = json.loads(text, object_pairs_hook=pairs, parse_constant=number, parse_float=number)
    except HeadFileError:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise HeadFileError(
            path, place, f"is not JSON ({error.msg})", "Correct it or export it again."
        ) from error
    except RecursionError as error:
        raise _too_deep(path) from error
    except ValueError as error:
        raise HeadFileError(path, "a number", str(error), "Correct it or export it again.") from error
    if not isinstance(document, dict):
        raise HeadFileError(
            path, "the document", f"is a {type(document).__name__}", "It must be a JSON object."
        )
    _check_depth(document, path)
    return document


def _check_depth(document: dict[str, Any], path: Path) -> None:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [part for item in containers for part in (item.values() if isinstance(item, dict) else item)]
    if any(isinstance(item, dict | list) for item in level):
        raise _too_deep(path)


def _too_deep(path: Path) -> HeadFileError:
    problem = f"is nested deeper than {MAX_DEPTH} levels"
    return HeadFileError(path, "the document", problem, "Export it again.")


class Document:
    """Typed access to one JSON object of a published format. Methods raise HeadFileError naming the key."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values

    def fail(self, place: str, problem: str, remedy: str) -> NoReturn:
        raise HeadFileError(self.path, place, problem, remedy)

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if not is_integer(value) or not low <= value <= high:
            self.fail(f"key {key!r}", f"is {shown(value)}", f"Give an integer from {low} to {high}.")
        return int(value)

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.fail(f"key {key!r}", f"is {shown(value)}", f"Give a number from {low} to {high}.")
        return float(value)

    def text(self, key: str) -> str | None:
        """An informational string: anything else counts as absent."""
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def layers(self, key: str = "num_layers") -> int:
        return self.integer(key, 1, MAX_LAYERS)

    def heads(self, key: str) -> int:
        return self.integer(key, 1, MAX_HEADS)

    def layer_ids(self, key: str, rows: int) -> tuple[int, ...]:
        """`rows` strictly increasing layer numbers."""
        ids = self.values.get(key)
        if (
            not isinstance(ids, list)
            or len(ids) != rows
            or not all(is_integer(i) and 0 <= i < 2**20 for i in ids)
        ):
            self.fail(f"key {key!r}", f"is {shown(ids)}", f"Give a list of {rows} layer numbers, one a row.")
        if sorted(set(ids)) != ids:
            self.fail(f"key {key!r}", f"is {shown(ids)}", "Give each layer number once, in increasing order.")
        return tuple(ids)

    def matrix(
        self, key: str, rows: int, columns: int, entry: Callable[[Any], T | None], wanted: str
    ) -> tuple[tuple[T, ...], ...]:
        """[rows][columns] under `key`; `entry` makes an entry of a raw value, None if it is not `wanted`."""
        raw = self.values.get(key)
        if not isinstance(raw, list) or len(raw) != rows:
            size = f"{len(raw)} rows" if isinstance(raw, list) else shown(raw)
            self.fail(f"key {key!r}", f"has {size}", f"Give {rows} rows of {columns} entries.")
        return tuple(
            self._row(f"{key}[{index}]", row, columns, entry, wanted) for index, row in enumerate(raw)
        )

    def _row(
        self, place: str, raw: object, columns: int, entry: Callable[[Any], T | None], wanted: str
    ) -> tuple[T, ...]:
        if not isinstance(raw, list) or len(raw) != columns:
            size = f"{len(raw)} entries" if isinstance(raw, list) else shown(raw)
            self.fail(place, f"has {size}", f"Give {columns} entries, one for each head.")
        row: list[T] = []
        for column, value in enumerate(raw):
            parsed = entry(value)
            if parsed is None:
                self.fail(f"{place}[{column}]", f"is {shown(value)}", f"Give {wanted}.")
            row.append(parsed)
        return tuple(row)


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def position_count(value: object) -> int | None:
    """A number of tokens as published files write it: -1 means none. None if it is anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and -1 <= value <= MAX_POSITIONS:
        return value
    return None


def shown(value: object) -> str:
    """A value of the file for an error message: ASCII, and cut short."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
