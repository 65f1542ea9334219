import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.heads import native
from vllm_redknot.heads.errors import HeadFileError
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.profile import HeadKind, HeadProfile, ModelIdentity, Provenance

MakeProfile = Callable[..., HeadProfile]
WriteFile = Callable[..., Path]


def test_defaults_fill_what_a_row_leaves_open(write_file: WriteFile, native_document: dict[str, Any]) -> None:
    profile = load_profile(write_file(native_document))
    assert profile.window == ((256, None), (None, 32))
    assert profile.sink == ((4, 4), (0, 4))
    assert profile.identity == ModelIdentity(name="tiny", model_type="llama", num_layers=2, num_kv_heads=2)
    assert profile.provenance == Provenance(tool="a test", parameters={"seed": 3})
    assert profile.source_format == "native version 1"


def test_what_is_written_is_read_back(profile_of: MakeProfile, tmp_path: Path) -> None:
    profile = replace(
        profile_of(["LGL", "RLD", "LLL"], layer_ids=(1, 3, 40), dense_prefix_layers=1),
        window=((7, None, 9), (None, 9, None), (9, 9, 9)),
        sink=((1, 2, 3), (4, 4, 4), (0, 0, 4)),
        kind=HeadKind.MLA,
        identity=ModelIdentity(name="M", num_layers=41, num_attention_heads=3, rope_theta=1e6),
        provenance=Provenance(tool="t", notes="n", provisional=True, parameters={"a": [1, None, "x"]}),
        sections={"evidence": {"score": [[0.5]]}},
    )
    path = tmp_path / "heads.json"
    native.write(profile, path)
    assert load_profile(path) == replace(profile, source_format="native version 1")


def test_a_profile_without_local_heads_is_read_back(profile_of: MakeProfile, tmp_path: Path) -> None:
    profile = replace(profile_of(["GG"], sink=0), identity=ModelIdentity(), provenance=Provenance())
    native.write(profile, tmp_path / "heads.json")
    assert load_profile(tmp_path / "heads.json") == replace(profile, source_format="native version 1")


def test_every_sample_survives_the_native_format(shared_data: Path, tmp_path: Path) -> None:
    for sample in (shared_data / "head_class").iterdir():
        profile = load_profile(sample)
        native.write(profile, tmp_path / "heads.json")
        again = load_profile(tmp_path / "heads.json")
        assert (again.classes, again.window, again.sink) == (profile.classes, profile.window, profile.sink)
        assert again.fingerprint() == profile.fingerprint()
        assert native.dumps(again) == native.dumps(profile)


def test_one_changed_head_changes_one_line(profile_of: MakeProfile) -> None:
    before = native.dumps(profile_of(["LLL", "LGL", "LLL"])).splitlines()
    after = native.dumps(profile_of(["LLL", "LGL", "LGL"])).splitlines()
    assert len(before) == len(after)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


def test_writing_replaces_the_file_in_one_step(
    profile_of: MakeProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "heads.json"
    native.write(profile_of(["LL"]), path)
    first = path.read_text()

    def fail(descriptor: int) -> None:
        raise OSError(28, f"no space left for {descriptor}")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        native.write(profile_of(["GG"]), path)
    assert path.read_text() == first
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_can_be_read_by_the_server_user(profile_of: MakeProfile, tmp_path: Path) -> None:
    native.write(profile_of(["LL"]), tmp_path / "heads.json")
    assert (tmp_path / "heads.json").stat().st_mode & 0o777 == 0o644


def test_the_published_schema_is_the_models(repo_root: Path) -> None:
    published = json.loads((repo_root / "docs" / "head_profile.schema.json").read_text())
    assert published == json.loads(native.schema_text()), "run python -m tools.make_head_schema"


BREAKAGES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("version 2", lambda d: d.update(version=2), "'version': is 2. This release reads version 1"),
    ("no version", lambda d: d.pop("version"), "'version': is None"),
    ("true for 1", lambda d: d.update(version=True), "'version': is True"),
    ("no model", lambda d: d.pop("model"), "'model'"),
    ("no provenance", lambda d: d.pop("provenance"), "'provenance'"),
    ("unknown key", lambda d: d.update(rows={}), "'rows'"),
    ("unknown model key", lambda d: d["model"].update(layers=2), "'model.layers'"),
    ("no layers", lambda d: d.update(layers=[]), "'layers'"),
    (
        "class",
        lambda d: d["layers"][0].update(classes=["local", "full"]),
        "'layers[0].classes[1]': is 'full'",
    ),
    ("alias", lambda d: d["layers"][0].update(classes=["local", "streaming"]), "'layers[0].classes[1]'"),
    ("window 0", lambda d: d["layers"][0].update(window=[0, None]), "'layers[0].window[0]'"),
    ("window text", lambda d: d["layers"][0].update(window=["9", None]), "'layers[0].window[0]'"),
    ("window bool", lambda d: d["layers"][0].update(window=[True, None]), "'layers[0].window[0]'"),
    ("window size", lambda d: d["layers"][0].update(window=[9]), "window of layer 0: has 1 entries. Give 2"),
    ("window of a global head", lambda d: d["layers"][0].update(window=[9, 9]), "is 9 for a global head"),
    ("no window at all", lambda d: d["defaults"].pop("window"), "window of layer 0 head 0: is not given"),
    ("sink", lambda d: d["layers"][1].update(sink=[-1, 0]), "'layers[1].sink[0]'"),
    ("ragged", lambda d: d["layers"][1].update(classes=["local"], window=[9], sink=[1]), "not a matrix of 2"),
    ("first row shorter", lambda d: d["layers"][0].update(classes=["local"]), "model.num_kv_heads: is 2"),
    ("layers out of order", lambda d: d["layers"].reverse(), "increasing layer numbers"),
    (
        "layer beyond",
        lambda d: d["layers"][1].update(layer=2),
        "model.num_layers: is 2, but there is a layer 2",
    ),
    ("dense prefix", lambda d: d.update(dense_prefix_layers=3), "dense_prefix_layers is 3: give 0 to 2"),
    ("kind", lambda d: d.update(heads="query"), "'heads'"),
    ("sections", lambda d: d.update(sections=[1]), "'sections'"),
]


@pytest.mark.parametrize(
    ("change", "message"), [row[1:] for row in BREAKAGES], ids=[row[0] for row in BREAKAGES]
)
def test_a_broken_native_file_is_refused_with_file_and_place(
    write_file: WriteFile,
    native_document: dict[str, Any],
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    change(native_document)
    path = write_file(native_document)
    with pytest.raises(HeadFileError) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_the_example_in_the_documentation_is_valid(repo_root: Path, write_file: WriteFile) -> None:
    text = (repo_root / "docs" / "head_classes.md").read_text()
    example = text.split("```json\n")[1].split("```")[0]
    profile = load_profile(write_file(example))
    assert profile.window == ((256, 256, 256), (1024, 256, None))
    assert profile.sink == ((4, 4, 4), (0, 4, 4))
