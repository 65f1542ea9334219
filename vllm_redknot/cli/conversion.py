"""Head classes from one format into another. What would be lost is found by reading the result back, not by rules."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from vllm_redknot.cli.errors import CliError
from vllm_redknot.heads import native
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.profile import HeadClass, HeadKind, HeadProfile
from vllm_redknot.heads.readers.duo_attention import CONFIG_NAME, TSV_NAME
from vllm_redknot.whole_file import write_whole

DUO_SIZES: Final = {"sink_size": 64, "recent_size": 256}
"""What a DuoAttention file without local heads states; nothing reads it."""


class Format(StrEnum):
    """What `convert` writes."""

    NATIVE = "native"
    V1 = "v1"
    V2 = "v2"
    DUO = "duo"


def render(profile: HeadProfile, target: Format) -> dict[str, str]:
    """File name -> text. The first is the head-class file; "" stands for the name the user gives.

    Raises:
        CliError: The format has no place for such a profile.
    """
    if target is Format.NATIVE:
        return {"": native.dumps(profile)}
    if profile.kind is HeadKind.MLA:
        raise CliError(f"{target} has KV heads, and the file is for {profile.shape}: convert it to native")
    if target is Format.V2:
        return {"": _matrix(profile, full_attention_layers=list(profile.layer_ids))}
    if profile.layer_ids != tuple(range(profile.num_layers)):
        raise CliError(
            f"{target} has a row for every layer from 0 on, and the file is for layers {list(profile.layer_ids)}:"
            " convert it to native or v2"
        )
    return {"": _matrix(profile)} if target is Format.V1 else _duo(profile)


class Lost(NamedTuple):
    """What the new file no longer says, one line each; and whether every head still sees the same."""

    items: list[str]
    same_view: bool


def losses(profile: HeadProfile, files: dict[str, str]) -> Lost:
    """What `files` no longer say of `profile`, found by reading them."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / (name or "heads.json")).write_text(text, encoding="ascii")
        again = load_profile(Path(folder) / next(name or "heads.json" for name in files))
    items = [*_seen_losses(profile, again), *_stated_losses(profile, again)]
    return Lost(items, same_view=again.fingerprint() == profile.fingerprint())


def write(files: dict[str, str], output: Path, overwrite: bool) -> list[Path]:
    """Write the files: `output` itself, or inside it where the format has two. Each appears whole or not at all.

    Raises:
        CliError: Something is there already and `overwrite` is False, or `output` is no place for it.
        OSError: A file cannot be written.
    """
    if "" in files:
        if output.is_dir():
            raise CliError(f"{output}: is a folder: give the path of a file")
    else:
        if output.exists() and not output.is_dir():
            raise CliError(f"{output}: is a file: {', '.join(files)} need a folder, give its path")
    paths = {output / name if name else output: text for name, text in files.items()}
    present = [str(path) for path in paths if path.exists() or path.is_symlink()]
    if present and not overwrite:
        raise CliError(f"{' and '.join(present)}: exists already: add --force to replace it")
    if not output.parent.is_dir():
        raise CliError(f"{output.parent}: no such folder: create it, or give another path")
    if "" not in files:
        output.mkdir(exist_ok=True)
    for path, text in paths.items():
        write_whole(path, text)
    return list(paths)


def _matrix(profile: HeadProfile, **more: Any) -> str:
    """V1, and V2 with `full_attention_layers`: the matrices as they are, with the words those formats have."""
    identity, provenance = profile.identity, profile.provenance
    stated = {
        "hf_repo": identity.name if identity else None,
        "model_type": identity.model_type if identity else None,
        "method": provenance.method if provenance else None,
        "notes": provenance.notes if provenance else None,
        "retrieval_top_p": provenance.parameters.get("retrieval_top_p") if provenance else None,
    }
    document = {
        "num_layers": profile.num_layers,
        "num_kv_heads": profile.num_kv_heads,
        **{key: value for key, value in stated.items() if value is not None},
        "dense_prefix_layers": profile.dense_prefix_layers,
        **more,
        "kv_head_classification": [[cls.value for cls in row] for row in profile.classes],
        "kv_head_max_distance": [[-1 if entry is None else entry for entry in row] for row in profile.window],
        "kv_head_sink_size": [list(row) for row in profile.sink],
    }
    return _lines(document)


def _lines(document: dict[str, Any]) -> str:
    """JSON with one line a matrix row."""
    parts = []
    for key, value in document.items():
        text = json.dumps(value)
        if isinstance(value, list) and value and isinstance(value[0], list):
            text = "[\n    " + ",\n    ".join(json.dumps(row) for row in value) + "\n  ]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def _duo(profile: HeadProfile) -> dict[str, str]:
    """Scores of 1 and 0; one sink and one window for all, the largest, so that no head sees less than it should."""
    local = [
        profile.visibility(layer, head)
        for layer in profile.layer_ids
        for head in range(profile.num_kv_heads)
        if profile.head_class(layer, head) is HeadClass.LOCAL
    ]
    sizes = DUO_SIZES
    if local:
        sizes = {
            "sink_size": max(seen.sink for seen in local),
            "recent_size": max(seen.window or 1 for seen in local),
        }
    rows = [
        "\t".join(
            "0.0" if profile.head_class(layer, head) is HeadClass.LOCAL else "1.0"
            for head in range(profile.num_kv_heads)
        )
        for layer in profile.layer_ids
    ]
    return {TSV_NAME: "\n".join(rows) + "\n", CONFIG_NAME: json.dumps(sizes) + "\n"}


def _seen_losses(before: HeadProfile, after: HeadProfile) -> Iterator[str]:
    """Where heads would see something else."""
    heads = [(layer, head) for layer in before.layer_ids for head in range(before.num_kv_heads)]
    for name, index in (("window", 0), ("sink", 1)):
        pairs = [
            (before.visibility(*place)[index], after.visibility(*place)[index])
            for place in heads
            if before.head_class(*place) is HeadClass.LOCAL
        ]
        changed = sorted({old for old, new in pairs if old != new and old is not None})
        if changed:
            count = sum(old != new for old, new in pairs)
            new = next(new for old, new in pairs if old != new)
            yield f"the {name} of {count} local heads ({_few(changed)} would become {new})"


def _stated_losses(before: HeadProfile, after: HeadProfile) -> Iterator[str]:
    """What the file says beside it."""
    places = [(row, head) for row in range(before.num_layers) for head in range(before.num_kv_heads)]
    for cls in HeadClass:
        gone = sum(before.classes[r][h] is cls and after.classes[r][h] is not cls for r, h in places)
        if gone:
            yield f"the class of {gone} {cls.value} heads"
    if before.dense_prefix_layers != after.dense_prefix_layers:
        yield f"dense_prefix_layers {before.dense_prefix_layers}"
    stray = sum(
        before.sink[r][h] != after.sink[r][h]
        for r, h in places
        if before.classes[r][h] is not HeadClass.LOCAL
    )
    if stray:
        yield f"the sink sizes noted for {stray} heads that see everything"
    for part in ("identity", "provenance"):
        yield from _field_losses(part, getattr(before, part), getattr(after, part), before)
    yield from (f"section {name!r}" for name in before.sections if name not in after.sections)


def _field_losses(part: str, before: Any, after: Any, profile: HeadProfile) -> Iterator[str]:
    if before is None:
        return
    for name in type(before).model_fields:
        old, new = getattr(before, name), getattr(after, name, None)
        # The number of rows says the number of layers where every layer has one.
        implied = name == "num_layers" and profile.layer_ids == tuple(range(old or 0))
        if name == "parameters":
            yield from (f"provenance.parameters.{key}" for key in old if (new or {}).get(key) != old[key])
        elif old not in (None, False) and old != new and not implied:
            yield f"{'model' if part == 'identity' else part}.{name}"


def _few(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:4]))
    return shown if len(values) <= 4 else f"{shown} and {len(values) - 4} more"
