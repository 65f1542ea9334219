"""The project's own head-class format, version 1, described in docs/head_classes.md."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from vllm_redknot.heads.documents import is_integer, shown
from vllm_redknot.heads.errors import HeadFileError
from vllm_redknot.heads.profile import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_POSITIONS,
    HeadClass,
    HeadKind,
    HeadProfile,
    ModelIdentity,
    Provenance,
)
from vllm_redknot.rows.schedule import RowScheduleError, schedule_of
from vllm_redknot.whole_file import write_whole

FORMAT: Final = "redknot-head-profile"
VERSION: Final = 1
KINDS: Final[dict[str, HeadKind]] = {"kv": HeadKind.KV, "mla": HeadKind.MLA}

Window = Annotated[int, Field(ge=1, le=MAX_POSITIONS)]
Sink = Annotated[int, Field(ge=0, le=MAX_POSITIONS)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Defaults(_Strict):
    """Window and sink, in tokens, of the local heads whose row states none."""

    window: Window | None = None
    sink: Sink = 4


class LayerRow(_Strict):
    """The heads of one attention layer, in order over all tensor-parallel ranks."""

    layer: Annotated[int, Field(ge=0, lt=2**20, description="number of the layer in the model, from 0")]
    classes: Annotated[
        list[Literal["local", "global", "dense", "retrieval"]], Field(min_length=1, max_length=MAX_HEADS)
    ]
    window: Annotated[
        list[Window | None] | None,
        Field(
            description="one entry a head; null: the default, and the only entry for a head that is not local"
        ),
    ] = None
    sink: Annotated[list[Sink | None] | None, Field(description="one entry a head; null: the default")] = None


class NativeFile(_Strict):
    """Which KV heads of a model see everything, and which a sink and a recent window."""

    model_config = ConfigDict(title="redknot-head-profile version 1")

    format: Literal["redknot-head-profile"]
    version: Literal[1]
    model: ModelIdentity
    provenance: Provenance
    heads: Annotated[
        Literal["kv", "mla"], Field(description="KV heads, or logical heads of an MLA model")
    ] = "kv"
    defaults: Defaults = Defaults()
    dense_prefix_layers: Annotated[int, Field(ge=0, description="so many first rows are dense")] = 0
    layers: Annotated[
        list[LayerRow],
        Field(
            min_length=1,
            max_length=MAX_LAYERS,
            description="one row an attention layer, by rising layer number",
        ),
    ]
    sections: Annotated[
        dict[str, JsonValue],
        Field(
            description="optional sections by name: rows is the schedule of row skipping (docs/row_skipping.md); all"
            " others, such as evidence, are kept, but never read to serve a model"
        ),
    ] = {}


def matches(document: Mapping[str, Any]) -> bool:
    return document.get("format") == FORMAT


def read(path: Path, document: Mapping[str, Any]) -> HeadProfile:
    """Raises HeadFileError, naming the place by its path in the document."""
    version = document.get("version")
    if not is_integer(version) or version != VERSION:
        problem = f"is {shown(version)}"
        raise HeadFileError(path, "key 'version'", problem, f"This release reads version {VERSION}.")
    try:
        file = NativeFile.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problem = f"is {shown(first['input'])}: {first['msg']}"
        remedy = "See docs/head_profile.schema.json."
        raise HeadFileError(path, _place(first["loc"]), problem, remedy) from error
    _check_identity(path, file)
    _check_rows(path, file)
    return HeadProfile(
        classes=tuple(tuple(HeadClass(name) for name in row.classes) for row in file.layers),
        window=tuple(_windows(path, row, file.defaults) for row in file.layers),
        sink=tuple(_sinks(path, row, file.defaults) for row in file.layers),
        layer_ids=tuple(row.layer for row in file.layers),
        dense_prefix_layers=file.dense_prefix_layers,
        kind=KINDS[file.heads],
        identity=file.model,
        provenance=file.provenance,
        source_format=f"native version {VERSION}",
        sections=file.sections,
    )


def _check_identity(path: Path, file: NativeFile) -> None:
    columns, last = len(file.layers[0].classes), file.layers[-1].layer
    key = "num_kv_heads" if file.heads == "kv" else "num_attention_heads"
    stated = getattr(file.model, key)
    if stated not in (None, columns):
        problem = f"is {stated}, but layer {file.layers[0].layer} has {columns} heads"
        raise HeadFileError(path, f"key model.{key}", problem, "Make them agree.")
    if file.model.num_layers is not None and last >= file.model.num_layers:
        problem = f"is {file.model.num_layers}, but there is a layer {last}"
        raise HeadFileError(path, "key model.num_layers", problem, "Make them agree.")


def _check_rows(path: Path, file: NativeFile) -> None:
    try:
        schedule_of(None, file.sections)
    except RowScheduleError as error:
        problem = f"states a schedule that cannot be used: {error}"
        raise HeadFileError(path, "section 'rows'", problem, "See docs/row_skipping.md.") from error


def _windows(path: Path, row: LayerRow, defaults: Defaults) -> tuple[int | None, ...]:
    given = _entries(path, row, "window", row.window)
    windows: list[int | None] = []
    for head, (name, window) in enumerate(zip(row.classes, given, strict=True)):
        place = f"window of layer {row.layer} head {head}"
        if name != "local" and window is not None:
            raise HeadFileError(
                path, place, f"is {window} for a {name} head", "Give null: it sees everything."
            )
        chosen = defaults.window if window is None else window
        if name == "local" and chosen is None:
            raise HeadFileError(path, place, "is not given, nor is defaults.window", "Give one of them.")
        windows.append(chosen if name == "local" else None)
    return tuple(windows)


def _sinks(path: Path, row: LayerRow, defaults: Defaults) -> tuple[int, ...]:
    given = _entries(path, row, "sink", row.sink)
    return tuple(defaults.sink if sink is None else sink for sink in given)


def _entries(path: Path, row: LayerRow, key: str, given: list[int | None] | None) -> list[int | None]:
    if given is None:
        return [None] * len(row.classes)
    if len(given) != len(row.classes):
        problem = f"has {len(given)} entries"
        raise HeadFileError(
            path, f"{key} of layer {row.layer}", problem, f"Give {len(row.classes)}, one a head."
        )
    return given


def _place(location: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return f"key {shown(text.removeprefix('.'))}"


def dumps(profile: HeadProfile) -> str:
    """The file's text: keys in one order, a line a layer, so that a diff shows the heads that differ."""
    windows = Counter(window for row in profile.window for window in row if window is not None)
    sinks = Counter(sink for row in profile.sink for sink in row)
    defaults: dict[str, JsonValue] = {"sink": _commonest(sinks)}
    if windows:
        defaults = {"window": _commonest(windows), **defaults}
    identity = profile.identity or ModelIdentity()
    provenance = profile.provenance or Provenance()
    document: dict[str, JsonValue] = {
        "format": FORMAT,
        "version": VERSION,
        "model": identity.model_dump(exclude_none=True),
        "provenance": provenance.model_dump(exclude_none=True),
        "heads": next(key for key, kind in KINDS.items() if kind is profile.kind),
        "defaults": defaults,
        "dense_prefix_layers": profile.dense_prefix_layers,
    }
    parts = [f'"{key}": {_nested(value)}' for key, value in document.items()]
    rows = ",\n    ".join(json.dumps(row) for row in _rows(profile, defaults))
    parts.append(f'"layers": [\n    {rows}\n  ]')
    if profile.sections:
        parts.append(f'"sections": {_nested(profile.sections)}')
    return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def _nested(value: JsonValue) -> str:
    return json.dumps(value, indent=2, allow_nan=False).replace("\n", "\n  ")


def _rows(profile: HeadProfile, defaults: Mapping[str, JsonValue]) -> Iterable[dict[str, JsonValue]]:
    for layer, classes, windows, sinks in zip(
        profile.layer_ids, profile.classes, profile.window, profile.sink, strict=True
    ):
        row: dict[str, JsonValue] = {"layer": layer, "classes": [cls.value for cls in classes]}
        if any(window not in (None, defaults.get("window")) for window in windows):
            row["window"] = list(windows)
        if any(sink != defaults["sink"] for sink in sinks):
            row["sink"] = list(sinks)
        yield row


def _commonest(counts: Counter[int]) -> int:
    # The smallest of equally common ones, so that the text does not depend on the order of heads.
    return min(counts, key=lambda value: (-counts[value], value))


def write(profile: HeadProfile, path: Path) -> None:
    """Replaces `path` in one step: a reader sees the old file or the new one. Raises OSError."""
    write_whole(path, dumps(profile))


def schema_text() -> str:
    """The JSON Schema of the format, as docs/head_profile.schema.json has it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **NativeFile.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"
