import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run, WriteModel
from vllm_redknot.heads.formats import load_profile

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
KEYS = {
    *("target", "origin", "why", "format", "head_kind", "num_layers", "num_kv_heads", "layer_ids"),
    *("dense_prefix_layers", "counts", "local_kinds", "identity", "provenance", "sections", "fingerprint"),
    *("model", "savings", "warnings", "classes", "window", "sink"),
}


def test_a_file_is_shown_with_map_counts_savings_and_provenance(redknot: Run, heads_file: Path) -> None:
    result = redknot("inspect", heads_file, "--contexts", "4K,64K")
    assert result.exit_code == 0
    for wanted in (
        "0  1 1",
        " 1  1 G",
        " 2  R 3",
        "window 256, sink 4",
        "notes: by hand",
        "Sections: evidence",
        "64K",
    ):
        assert wanted in result.stdout
    assert "\x1b" not in result.stdout


def test_json_has_the_same_keys_for_files_and_models(
    redknot: Run, heads_file: Path, write_model: WriteModel
) -> None:
    for arguments in ((heads_file,), (write_model(), "--heads", heads_file), (write_model("bare"),)):
        document = json.loads(redknot("inspect", *arguments, "--json").stdout)
        assert set(document) == KEYS


def test_json_says_what_the_file_says(redknot: Run, heads_file: Path) -> None:
    document = json.loads(redknot("inspect", heads_file, "--json", "--contexts", "1M").stdout)
    assert document["counts"] == {"local": 6, "global": 1, "dense": 0, "retrieval": 1}
    assert document["local_kinds"] == [
        {"window": 256, "sink": 4, "heads": 4},
        {"window": 256, "sink": 16, "heads": 1},
        {"window": 1024, "sink": 4, "heads": 1},
    ]
    assert document["classes"][1] == ["local", "global"]
    assert document["window"][2] == [None, 1024]
    assert document["fingerprint"] == load_profile(heads_file).fingerprint()
    assert document["model"] is None
    # Two of eight heads keep everything, the others next to nothing of a million tokens.
    assert document["savings"][0]["kept_share"] == pytest.approx(2 / 8, abs=0.01)
    assert document["savings"][0]["request_bytes"] is None


@pytest.mark.parametrize("width", [30, 60, 200])
def test_every_sample_is_shown_within_the_terminals_width(
    redknot: Run, shared_data: Path, width: int
) -> None:
    for sample in sorted((shared_data / "head_class").iterdir()):
        result = redknot("inspect", sample, width=width)
        assert result.exit_code == 0
        lines = [line for line in result.stdout.splitlines() if str(sample) not in line]
        assert max(map(len, lines)) <= width
        profile = load_profile(sample)
        assert all(f"{cls.value}: " in result.stdout for cls in profile.counts())


def test_what_the_reader_finds_odd_is_a_warning_on_stderr(redknot: Run, shared_data: Path) -> None:
    result = redknot("inspect", shared_data / "head_class" / "llama-70B_sweetspot_g10_w4096.json")
    assert "warning: the global heads are a random draw" in result.stderr
    assert "random draw" not in result.stdout


def test_an_mla_file_has_no_kv_bytes_of_its_own(redknot: Run, shared_data: Path) -> None:
    sample = shared_data / "head_class" / "dsv4_safe_stride8.json"
    assert json.loads(redknot("inspect", sample, "--json").stdout)["savings"] == []
    assert "share one cache" in " ".join(redknot("inspect", sample).stdout.split())


def test_a_model_shows_which_profile_a_server_would_use_and_why(
    redknot: Run, write_model: WriteModel, heads_file: Path
) -> None:
    folder = write_model()
    bare = json.loads(redknot("inspect", folder, "--json").stdout)
    assert bare["why"][1] == "no redknot_heads.json in the model's folder"
    assert "bundled smollm2-135m.json is for another model" in bare["why"][2]
    assert bare["counts"]["global"] == 8
    assert "every head is global, so nothing is saved" in " ".join(bare["warnings"])
    given = json.loads(redknot("inspect", folder, "--heads", heads_file, "--json").stdout)
    assert given["why"] == [f'the setting "heads" is {heads_file}: it comes first']
    shutil.copy(heads_file, folder / "redknot_heads.json")
    beside = json.loads(redknot("inspect", folder, "--json").stdout)
    assert beside["why"][-1] == "redknot_heads.json lies in the model's folder: it is used"
    assert beside["counts"] == given["counts"]
    assert beside["savings"][0]["dense_request_bytes"] == 8 * 8192 * 2 * 64 * 2


def test_the_test_model_gets_the_bundled_profile(redknot: Run, model_path: Path) -> None:
    document = json.loads(redknot("inspect", model_path, "--json").stdout)
    assert document["origin"] == "bundled smollm2-135m.json"
    assert document["why"][-1].endswith("states exactly this model's shape: it is used")


def test_settings_of_the_environment_are_in_force_and_said(
    redknot: Run, heads_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDKNOT_WINDOW", "77")
    document = json.loads(redknot("inspect", heads_file, "--sink", "1", "--json").stdout)
    assert document["local_kinds"] == [{"window": 77, "sink": 1, "heads": 6}]
    assert document["why"] == [
        "the setting 'window' is 77: it replaces the file's",
        "the setting 'sink' is 1: it replaces the file's",
    ]


def test_a_layers_own_window_counts_in_what_is_saved(redknot: Run, write_model: WriteModel) -> None:
    folder = write_model(model_type="mistral", sliding_window=512)
    document = json.loads(
        redknot("inspect", folder, "--heads", "all-global", "--json", "--contexts", "128K").stdout
    )
    assert document["model"]["sliding_window_layers"] == [0, 1, 2, 3]
    assert document["savings"][0]["kept_share"] < 0.05


def test_a_model_that_is_not_served_is_a_warning(redknot: Run, write_model: WriteModel) -> None:
    result = redknot("inspect", write_model(head_dim=72))
    assert "does not serve heads of size 72" in result.stderr


def test_a_file_of_another_shape_is_refused_with_both_shapes(
    fails: Callable[..., str], write_model: WriteModel, heads_file: Path
) -> None:
    line = fails("inspect", write_model(num_hidden_layers=5), "--heads", heads_file, "--json")
    assert "4 attention layers x 2 KV heads" in line
    assert "5 layers" in line


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b'{"format": "other"}', b"[" * 90_000, b"nan\tinf"]
)
def test_a_malformed_file_is_one_line(fails: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    assert "bad.json" in fails("inspect", path, "--json")


def test_a_file_cannot_steer_the_terminal(redknot: Run, heads_file: Path, write_model: WriteModel) -> None:
    text = heads_file.read_text()
    evil = json.dumps("\x1b]0;owned\x07\x1b[31m[red]notes[/red]")
    heads_file.write_text(text.replace('"by hand"', evil).replace('"name": "small"', f'"model_type": {evil}'))
    for arguments in ((heads_file,), (write_model(), "--heads", heads_file)):
        result = redknot("inspect", *arguments)
        assert result.exit_code == 0
        assert not [letter for letter in result.output if not letter.isprintable() and letter != "\n"]
        assert "[red]notes[/red]" in result.stdout


def test_a_models_broken_config_is_named_as_such(fails: Callable[..., str], write_model: WriteModel) -> None:
    folder = write_model()
    (folder / "config.json").write_text("{")
    assert "config.json: is not JSON" in fails("inspect", folder)


def test_paths_that_lead_nowhere_are_one_line(
    fails: Callable[..., str], tmp_path: Path, heads_file: Path
) -> None:
    assert "No such file" in fails("inspect", tmp_path / "none.json")
    assert "is a folder without" in fails("inspect", tmp_path)
    assert "not a regular file" in fails("inspect", "/dev/null")
    assert "no folder with a model's config.json" in fails("inspect", heads_file, "--heads", heads_file)
    assert "No such file or directory" in fails("inspect", heads_file, "--png", tmp_path / "no" / "map.png")


def test_a_picture_is_a_png_file(fails: Callable[..., str], heads_file: Path, tmp_path: Path) -> None:
    for name in ("map.xyz", "map", "map.svg"):
        assert "ends in .png" in fails("inspect", heads_file, "--png", tmp_path / name, status=2)
    (tmp_path / "map.png").mkdir()
    assert "map.png: Is a directory" in fails("inspect", heads_file, "--png", tmp_path / "map.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads.json", "map.png"]


def test_the_map_is_written_as_a_picture(redknot: Run, heads_file: Path, tmp_path: Path) -> None:
    assert redknot("inspect", heads_file, "--png", tmp_path / "map.png").exit_code == 0
    content = (tmp_path / "map.png").read_bytes()
    assert content.startswith(PNG_MAGIC)
    from matplotlib import image

    # The picture has the colours of its classes, not one blank.
    pixels = image.imread(tmp_path / "map.png")[..., :3]
    colours = {tuple(round(float(part), 2) for part in pixel) for pixel in pixels.reshape(-1, 3)}
    assert {(0.82, 0.29, 0.36), (0.93, 0.68, 0.29)} <= colours


def test_without_matplotlib_a_picture_is_refused_with_the_remedy(
    fails: Callable[..., str], heads_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in fails("inspect", heads_file, "--png", tmp_path / "map.png")
