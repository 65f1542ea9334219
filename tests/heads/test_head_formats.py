"""The published formats: every sample file, and the rules of each reader on small files."""

import itertools
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.profile import EVERYTHING, HeadClass, HeadKind, HeadProfile

WriteFile = Callable[..., Path]
LOCAL, GLOBAL, DENSE, RETRIEVAL = HeadClass.LOCAL, HeadClass.GLOBAL, HeadClass.DENSE, HeadClass.RETRIEVAL

# File: format, rows x heads, classes of the matrix, window, sink, dense prefix.
SAMPLES: dict[str, tuple[str, tuple[int, int], dict[HeadClass, int], int, int, int]] = {
    "llama-70B_optimal_g15_lf_ret": ("V1", (80, 8), {LOCAL: 560, RETRIEVAL: 40, GLOBAL: 40}, 8192, 4, 0),
    "llama-70B_sweetspot_g10_w4096": ("V1", (80, 8), {LOCAL: 576, GLOBAL: 64}, 4096, 4, 0),
    "mistral-7B_optimal_g15_lf_ret": ("V1", (32, 8), {LOCAL: 96, GLOBAL: 160}, 4096, 4, 0),
    "mistral-7B_parity_98local_w3000": ("V1", (32, 8), {LOCAL: 251, GLOBAL: 5}, 3000, 4, 0),
    "qwen3-32B_optimal_g15_lf_ret": ("V1", (64, 8), {LOCAL: 435, GLOBAL: 48, RETRIEVAL: 29}, 4096, 4, 0),
    "qwen3.5-35B-A3B_redknot_server": ("V2", (10, 2), {LOCAL: 12, GLOBAL: 8}, 4096, 4, 5),
    "qwen3.5-397B-A17B_redknot_server": ("V2", (15, 2), {LOCAL: 18, GLOBAL: 12}, 2048, 4, 9),
    "qwen3.5-35B-A3B_redknot": ("V3", (10, 2), {LOCAL: 12, GLOBAL: 8}, 4096, 4, 5),
    "dsv4_safe_stride8": ("V4", (43, 64), {LOCAL: 2296, GLOBAL: 328, DENSE: 128}, 128, 0, 2),
}
RANDOM_SAMPLES = {name for name in SAMPLES if "sweetspot" in name or "qwen3.5" in name}


def matrix_counts(profile: HeadProfile) -> Counter[HeadClass]:
    """Heads per class as the matrix has them, the dense prefix left out of account."""
    return Counter(itertools.chain.from_iterable(profile.classes))


def test_every_sample_file_is_tested(shared_data: Path) -> None:
    assert {path.stem for path in (shared_data / "head_class").iterdir()} == SAMPLES.keys()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_published_file_has_the_counts_of_its_matrix(shared_data: Path, name: str) -> None:
    variant, shape, classes, window, sink, prefix = SAMPLES[name]
    profile = load_profile(shared_data / "head_class" / f"{name}.json")
    assert profile.source_format == f"RedKnot {variant}"
    assert (profile.num_layers, profile.num_kv_heads) == shape
    assert matrix_counts(profile) == classes
    assert {entry for row in profile.window for entry in row if entry is not None} == {window}
    assert {entry for row in profile.sink for entry in row} == {sink}
    assert profile.dense_prefix_layers == prefix
    assert profile.counts()[DENSE] == prefix * shape[1]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_whose_global_heads_are_a_random_draw_is_warned_about(shared_data: Path, name: str) -> None:
    warnings = load_profile(shared_data / "head_class" / f"{name}.json").warnings
    assert any("random draw (seed 1234)" in line for line in warnings) is (name in RANDOM_SAMPLES)


def test_the_drawn_v3_matrix_is_the_one_published_as_v2(shared_data: Path) -> None:
    drawn = load_profile(shared_data / "head_class" / "qwen3.5-35B-A3B_redknot.json")
    published = load_profile(shared_data / "head_class" / "qwen3.5-35B-A3B_redknot_server.json")
    assert drawn.classes == published.classes
    assert drawn.fingerprint() == published.fingerprint()


def test_v2_rows_stand_for_full_attention_layers(shared_data: Path) -> None:
    profile = load_profile(shared_data / "head_class" / "qwen3.5-35B-A3B_redknot_server.json")
    assert profile.layer_ids == (3, 7, 11, 15, 19, 23, 27, 31, 35, 39)
    # The file's provenance names layers 23, 27, ... as the sparse ones: the prefix of 5 counts rows.
    assert all(profile.head_class(layer, head) is DENSE for layer in (3, 19) for head in (0, 1))
    assert profile.head_class(39, 0) is LOCAL
    assert profile.head_class(39, 1) is GLOBAL


def test_the_places_of_the_mistral_parity_file(shared_data: Path) -> None:
    profile = load_profile(shared_data / "head_class" / "mistral-7B_parity_98local_w3000.json")
    places = {
        (layer, head) for layer in range(32) for head in range(8) if profile.classes[layer][head] is GLOBAL
    }
    assert places == {(0, 0), (6, 3), (12, 6), (19, 2), (25, 5)}
    assert profile.visibility(0, 0) == EVERYTHING


def test_mla_files_hold_logical_heads(shared_data: Path) -> None:
    profile = load_profile(shared_data / "head_class" / "dsv4_safe_stride8.json")
    assert profile.kind is HeadKind.MLA
    assert "MLA logical head" in profile.shape
    assert [profile.head_class(5, head) for head in (0, 7, 8)] == [GLOBAL, GLOBAL, LOCAL]


def test_aliases_are_local(write_file: WriteFile, v1: dict[str, Any]) -> None:
    v1["kv_head_classification"] = [["local_full", "limited"], ["streaming", "sink_dominant"]]
    assert matrix_counts(load_profile(write_file(v1))) == {LOCAL: 4}


def test_v1_windows_and_sinks_are_per_head(write_file: WriteFile, v1: dict[str, Any]) -> None:
    profile = load_profile(write_file(v1))
    assert profile.window == ((4096, None), (None, 1024))
    assert profile.visibility(1, 1) == (1024, 16)


def test_v1_without_a_sink_matrix_has_sink_4_whatever_its_summary_says(
    write_file: WriteFile, v1: dict[str, Any]
) -> None:
    del v1["kv_head_sink_size"]
    profile = load_profile(write_file({**v1, "sink_size": 64, "summary": {"global": 99}}))
    assert profile.sink == ((4, 4), (4, 4))


def test_a_v1_distance_beside_a_head_that_is_not_local_means_nothing(
    write_file: WriteFile, v1: dict[str, Any]
) -> None:
    v1["kv_head_max_distance"] = [[4096, 4096], [0, 1024]]
    assert load_profile(write_file(v1)).window == ((4096, None), (None, 1024))


@pytest.mark.parametrize("distance", [0, -1])
def test_a_local_v1_head_without_distance_gets_512_with_a_warning(
    write_file: WriteFile, v1: dict[str, Any], distance: int
) -> None:
    v1["kv_head_max_distance"] = [[distance, -1], [-1, 1024]]
    profile = load_profile(write_file(v1))
    assert profile.window[0][0] == 512
    assert profile.warnings == ("1 local heads state no window: they get 512",)


def test_v3_draws_a_rounded_fraction_and_takes_its_own_sizes(write_file: WriteFile) -> None:
    document = {
        "num_layers": 12,
        "full_attention_layers": [2, 5, 8],
        "num_full_layers": 3,
        "dense_full_layers": 1,
        "num_kv_heads": 4,
        "num_q_heads": 16,
        "head_dim": 64,
        "frac_global": 0.3,
        "window": 33,
        "sink_size": 2,
    }
    profile = load_profile(write_file(document))
    places = [(row, head) for row in range(3) for head in range(4)]
    random.Random(1234).shuffle(places)
    assert {(r, h) for r in range(3) for h in range(4) if profile.classes[r][h] is GLOBAL} == set(places[:4])
    assert profile.layer_ids == (2, 5, 8)
    assert profile.dense_prefix_layers == 1
    assert {profile.visibility(8, head) for head in range(4)} <= {(33, 2), (None, 0)}


@pytest.fixture
def v4() -> dict[str, Any]:
    return {
        "format": "redknot_deepseek_v4_mla_head_config_v1",
        "num_layers": 1,
        "num_attention_heads": 4,
        "physical_kv_heads": 1,
        "dense_prefix_layers": 0,
        "default_sink_size": 3,
        "local_default_window": 128,
        "mla_head_classification": [["local", "local", "global", "dense"]],
        "mla_head_max_distance": [[64, 0, 77, -1]],
        "mla_head_sink_size": [[5, 0, -1, 1]],
    }


def test_v4_falls_back_to_its_defaults(write_file: WriteFile, v4: dict[str, Any]) -> None:
    profile = load_profile(write_file(v4))
    assert profile.window == ((64, 128, None, None),)
    assert profile.sink == ((5, 3, 3, 1),)
    v4["mla_head_sink_size"] = None
    assert load_profile(write_file(v4)).sink == ((3, 3, 3, 3),)


def write_duo(folder: Path, tsv: str, config: str = '{"sink_size": 64, "recent_size": 256}') -> Path:
    (folder / "config.json").write_text(config)
    path = folder / "full_attention_heads.tsv"
    path.write_text(tsv)
    return path


def test_duo_attention_scores_above_the_threshold_are_global(tmp_path: Path) -> None:
    path = write_duo(tmp_path, "0.9\t0.5\t0.0\n1.0\t0.51\t1e-3\n")
    profile = load_profile(path)
    assert [[cls.value for cls in row] for row in profile.classes] == [
        ["global", "local", "local"],
        ["global", "global", "local"],
    ]
    assert profile.visibility(0, 1) == (256, 64)
    assert matrix_counts(load_profile(path, duo_threshold=0.95))[GLOBAL] == 1
    assert matrix_counts(load_profile(path, duo_threshold=1.0))[GLOBAL] == 0


def test_a_folder_with_duo_attentions_files_can_be_named(tmp_path: Path) -> None:
    path = write_duo(tmp_path, "0.9 0.1\n")
    assert load_profile(tmp_path) == load_profile(path)


def test_formats_are_told_apart_by_content_not_by_name(write_file: WriteFile, v1: dict[str, Any]) -> None:
    path = write_file(v1, name="full_attention_heads.tsv")
    assert load_profile(path).source_format == "RedKnot V1"


def test_a_byte_order_mark_is_accepted(write_file: WriteFile, v1: dict[str, Any]) -> None:
    plain = write_file(v1).read_bytes()
    assert load_profile(write_file(b"\xef\xbb\xbf" + plain)).source_format == "RedKnot V1"
