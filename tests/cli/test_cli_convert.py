import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from vllm_redknot.cli.conversion import Format, losses, render
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.profile import HeadClass, HeadKind, HeadProfile


def same_heads(one: HeadProfile, other: HeadProfile) -> bool:
    """Whether two profiles agree in everything a server uses, and in the classes' names."""
    keys = ("classes", "window", "sink", "layer_ids", "dense_prefix_layers", "kind")
    return all(getattr(one, key) == getattr(other, key) for key in keys)


def convert(redknot: Run, source: Path, output: Path, to: str, *flags: str) -> dict[str, Any]:
    """The report of a conversion that must succeed."""
    result = redknot("convert", source, "-o", output, "--to", to, "--json", *flags)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_every_sample_goes_to_native_and_back_unchanged(
    redknot: Run, shared_data: Path, tmp_path: Path
) -> None:
    for sample in sorted((shared_data / "head_class").iterdir()):
        before = load_profile(sample)
        report = convert(redknot, sample, tmp_path / sample.name, "native")
        assert report["lost"] == []
        after = load_profile(tmp_path / sample.name)
        assert same_heads(before, after)
        assert (after.identity, after.provenance) == (
            before.identity or after.identity,
            before.provenance or after.provenance,
        )
        if before.kind is HeadKind.MLA:
            continue
        back = "v1" if before.source_format == "RedKnot V1" else "v2"
        flags = ["--lossy"] if before.source_format == "RedKnot V3" else []
        convert(redknot, tmp_path / sample.name, tmp_path / f"{back}-{sample.name}", back, *flags)
        again = load_profile(tmp_path / f"{back}-{sample.name}")
        assert same_heads(before, again)
        assert again.warnings == before.warnings or not flags


@pytest.mark.parametrize(("to", "made"), [("v1", "RedKnot V1"), ("v2", "RedKnot V2")])
def test_published_matrices_survive_their_own_format_with_every_word(
    redknot: Run, shared_data: Path, tmp_path: Path, to: str, made: str
) -> None:
    samples = [
        path for path in (shared_data / "head_class").iterdir() if load_profile(path).source_format == made
    ]
    assert samples
    for sample in samples:
        assert convert(redknot, sample, tmp_path / sample.name, to)["lost"] == []
        # A sample that states no window for a local head has it written out.
        before, after = load_profile(sample), load_profile(tmp_path / sample.name)
        assert replace(after, warnings=()) == replace(before, warnings=())


def test_every_kv_sample_of_all_layers_goes_to_duo_attention(
    redknot: Run, shared_data: Path, tmp_path: Path
) -> None:
    done = 0
    for sample in sorted((shared_data / "head_class").iterdir()):
        before = load_profile(sample)
        if before.source_format != "RedKnot V1":
            continue
        report = convert(redknot, sample, tmp_path / sample.stem, "duo", "--lossy")
        after = load_profile(tmp_path / sample.stem)
        assert report["same_view"]
        assert after.fingerprint() == before.fingerprint()
        assert after.source_format == "DuoAttention"
        assert (
            convert(redknot, tmp_path / sample.stem, tmp_path / f"again-{sample.stem}", "duo")["lost"] == []
        )
        done += 1
    assert done == 5


def test_a_lossy_conversion_names_what_would_be_lost_and_writes_nothing(
    fails: Callable[..., str], heads_file: Path, tmp_path: Path
) -> None:
    line = fails("convert", heads_file, "-o", tmp_path / "out.json", "--to", "v1")
    assert "provenance.tool; section 'evidence' (what heads see stays the same): add --lossy" in line
    assert not (tmp_path / "out.json").exists()


def test_mixed_windows_do_not_fit_into_duo_attention(
    fails: Callable[..., str], redknot: Run, heads_file: Path, tmp_path: Path
) -> None:
    line = fails("convert", heads_file, "-o", tmp_path / "duo", "--to", "duo")
    assert "the window of 5 local heads (256 would become 1024)" in line
    assert "the sink of 5 local heads (4 would become 16)" in line
    assert "WHAT HEADS SEE CHANGES" in line
    assert not (tmp_path / "duo").exists()
    result = redknot("convert", heads_file, "-o", tmp_path / "duo", "--to", "duo", "--lossy")
    assert "heads see something else" in result.stderr
    after = load_profile(tmp_path / "duo")
    # The largest of each: no head sees less than it did.
    assert {after.visibility(layer, head) for layer in range(4) for head in range(2)} == {
        (None, 0),
        (1024, 16),
    }


def test_a_dense_prefix_is_written_out_where_the_format_has_none(heads_file: Path) -> None:
    profile = load_profile(heads_file).with_overrides(window=64, sink=4, dense_prefix_layers=2)
    lost = losses(profile, render(profile, Format.DUO))
    assert lost.same_view
    assert "dense_prefix_layers 2" in lost.items
    assert not [item for item in lost.items if "window" in item]


def test_layers_with_gaps_need_a_format_that_names_them(
    fails: Callable[..., str], redknot: Run, shared_data: Path, tmp_path: Path
) -> None:
    sample = shared_data / "head_class" / "qwen3.5-35B-A3B_redknot_server.json"
    for to in ("v1", "duo"):
        line = fails("convert", sample, "-o", tmp_path / "out", "--to", to, "--lossy")
        assert "[3, 7, 11" in line
        assert "convert it to native or v2" in line
    assert convert(redknot, sample, tmp_path / "out.json", "v2")["lost"] == []


def test_mla_heads_go_to_native_only(fails: Callable[..., str], shared_data: Path, tmp_path: Path) -> None:
    for to in ("v1", "v2", "duo"):
        line = fails(
            "convert", shared_data / "head_class" / "dsv4_safe_stride8.json", "-o", tmp_path / "x", "--to", to
        )
        assert "MLA logical heads: convert it to native" in line


def test_the_duo_threshold_decides_and_other_settings_do_not(
    redknot: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full_attention_heads.tsv").write_text("0.2\t0.6\n0.9\t0.1\n")
    (tmp_path / "config.json").write_text('{"sink_size": 64, "recent_size": 256}')
    monkeypatch.setenv("REDKNOT_WINDOW", "5")
    convert(redknot, tmp_path, tmp_path / "out.json", "native", "--duo-threshold", "0.7")
    profile = load_profile(tmp_path / "out.json")
    assert [[cls is HeadClass.GLOBAL for cls in row] for row in profile.classes] == [
        [False, False],
        [True, False],
    ]
    assert profile.window == ((256, 256), (None, 256))


def test_a_file_that_is_there_is_kept_unless_forced(
    fails: Callable[..., str], redknot: Run, heads_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    output.write_text("mine")
    assert "exists already: add --force" in fails("convert", heads_file, "-o", output)
    assert output.read_text() == "mine"
    assert convert(redknot, heads_file, output, "native", "--force")["written"] == [str(output)]
    assert load_profile(output).fingerprint() == load_profile(heads_file).fingerprint()
    assert output.stat().st_mode & 0o777 == 0o644


def test_places_that_cannot_take_the_result_are_one_line(
    fails: Callable[..., str], heads_file: Path, tmp_path: Path
) -> None:
    assert "is a folder: give the path of a file" in fails("convert", heads_file, "-o", tmp_path)
    assert "no such folder" in fails("convert", heads_file, "-o", tmp_path / "no" / "out.json")
    assert "need a folder" in fails("convert", heads_file, "-o", heads_file, "--to", "duo", "--lossy")
    assert "none.json" in fails("convert", tmp_path / "none.json", "-o", tmp_path / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["heads.json"]


def test_people_read_where_it_went_and_what_was_left_out(
    redknot: Run, heads_file: Path, tmp_path: Path
) -> None:
    result = redknot("convert", heads_file, "-o", tmp_path / "out.json", "--to", "v1", "--lossy")
    assert result.stdout.splitlines()[0] == str(tmp_path / "out.json")
    assert "left out: provenance.tool" in result.stdout
