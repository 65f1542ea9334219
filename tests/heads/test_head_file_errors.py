"""Untrusted files: every way to be wrong is one HeadFileError that names file, place and remedy."""

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_redknot.heads import documents
from vllm_redknot.heads.errors import HeadFileError
from vllm_redknot.heads.formats import JSON_FORMATS, load_profile

WriteFile = Callable[..., Path]


def refused(path: Path | str) -> str:
    with pytest.raises(HeadFileError) as caught:
        load_profile(path)
    error = caught.value
    message = str(error)
    assert all(part and part in message for part in (error.path, error.place, error.problem, error.remedy))
    assert message.isascii() or str(path) in message
    assert len(message) < len(str(path)) + 1000
    return message


def test_a_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.json")


def test_a_folder_without_a_known_file(tmp_path: Path) -> None:
    assert "is a folder without full_attention_heads.tsv" in refused(tmp_path)


@pytest.mark.parametrize("path", ["/dev/zero", "nul\0byte", "x" * 5000, "no-folder/heads.json"])
def test_a_path_that_is_no_regular_file(path: str) -> None:
    refused(path)


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refused(tmp_path / "pipe")


def test_a_file_that_is_too_large(write_file: WriteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 100)
    assert "is larger than 100 bytes" in refused(write_file("{" + " " * 100 + "}"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no known head-class format"),
        (b"  \n ", "is no known head-class format"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b'{"a": "\xc3("}', "is not UTF-8"),
        (b"PK\x03\x04", "is no known head-class format"),
        (b"[1, 2]", "is no known head-class format"),
        (b"null", "is no known head-class format"),
        (b"{}", "those of no known head-class format"),
        (b'{"head_map": [[true]]}', "those of no known head-class format"),
        (b'{"num_layers": 1', "line 1 column 17: is not JSON"),
        (b'{"num_layers": 1,\n}', "line 2 column 1: is not JSON"),
        (b'{"a": 1, "b": 2, "a": 3}', "key 'a': appears twice"),
        (b'{"a": NaN}', "is not finite"),
        (b'{"a": -Infinity}', "is not finite"),
        (b'{"a": 1e999}', "is not finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number: "),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "is nested deeper than 32 levels"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested deeper than 32 levels"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is nested deeper than 32 levels"),
        (b'{"format": "redknot-head-profile", "version": 1, "\\ud800": 1}', "ud800"),
    ],
)
def test_content_that_is_no_head_class_file(write_file: WriteFile, content: bytes, message: str) -> None:
    assert message in refused(write_file(content))


def test_an_unknown_format_is_answered_with_the_known_ones(write_file: WriteFile) -> None:
    message = refused(write_file({"heads": []}))
    assert all(known.name in message for known in JSON_FORMATS)
    assert "full_attention_heads.tsv" in message


V1_BREAKAGES: list[tuple[dict[str, Any], str]] = [
    ({"num_layers": None}, "key 'num_layers': is None. Give an integer from 1 to 1024"),
    ({"num_layers": True}, "'num_layers': is True"),
    ({"num_layers": "2"}, "'num_layers': is '2'"),
    ({"num_layers": 2.0}, "'num_layers': is 2.0"),
    ({"num_layers": 10**9}, "'num_layers': is 1000000000"),
    ({"num_kv_heads": 0}, "'num_kv_heads': is 0"),
    ({"num_layers": 3}, "key 'kv_head_classification': has 2 rows. Give 3 rows of 2 entries"),
    ({"kv_head_classification": "local"}, "key 'kv_head_classification': has 'local'"),
    ({"kv_head_classification": [["local"], ["local", "local"]]}, "kv_head_classification[0]: has 1 entries"),
    ({"kv_head_classification": [["local", 1], ["local", "local"]]}, "kv_head_classification[0][1]: is 1"),
    (
        {"kv_head_classification": [["local", "lokal"], ["local"] * 2]},
        "[0][1]: is 'lokal'. Give one of local, ",
    ),
    ({"kv_head_classification": [["local", ["local"]], ["local"] * 2]}, "kv_head_classification[0][1]: is ["),
    ({"kv_head_classification": [{"0": "local"}, ["local"] * 2]}, "kv_head_classification[0]: has {"),
    ({"kv_head_max_distance": None}, "key 'kv_head_max_distance': has None"),
    ({"kv_head_max_distance": [[1, 1], [1, 1.5]]}, "kv_head_max_distance[1][1]: is 1.5"),
    ({"kv_head_max_distance": [[1, 1], [1, True]]}, "kv_head_max_distance[1][1]: is True"),
    ({"kv_head_max_distance": [[1, 1], [1, -2]]}, "kv_head_max_distance[1][1]: is -2"),
    ({"kv_head_max_distance": [[1, 1], [1, 2**31]]}, "kv_head_max_distance[1][1]: is 2147483648"),
    ({"kv_head_sink_size": [[4, 4]]}, "key 'kv_head_sink_size': has 1 rows"),
    ({"kv_head_sink_size": [[4, 4], [4, -1]]}, "kv_head_sink_size[1][1]: is -1"),
    ({"dense_prefix_layers": 3}, "'dense_prefix_layers': is 3. Give an integer from 0 to 2"),
    ({"retrieval_top_p": 2}, "'retrieval_top_p': is 2"),
    ({"full_attention_layers": [3]}, "'full_attention_layers': is [3]. Give a list of 2 layer numbers"),
    ({"full_attention_layers": [7, 3]}, "'full_attention_layers': is [7, 3]. Give each layer number once"),
    ({"full_attention_layers": [3, 3]}, "'full_attention_layers': is [3, 3]"),
    ({"full_attention_layers": [3, "7"]}, "'full_attention_layers': is [3, '7']"),
]


@pytest.mark.parametrize(("change", "message"), V1_BREAKAGES)
def test_a_broken_matrix_file(
    write_file: WriteFile, v1: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    assert message in refused(write_file({**v1, **change}))


@pytest.mark.parametrize(
    ("tsv", "config", "message"),
    [
        ("0.5\t0.5\n0.5\n", "{}", "line 2: has 1 numbers. Give 2"),
        ("0.5\t0.5\n0.5\tx\n", "{}", "line 2: has 'x'. Give finite numbers"),
        ("nan\t0.5\n", "{}", "line 1: has 'nan'"),
        ("0.5\tinf\n", "{}", "line 1: has 'inf'"),
        ("0.5\n", None, "config.json beside it: is missing"),
        ("0.5\n", "{}", "key 'recent_size': is None"),
        ("0.5\n", '{"recent_size": 0, "sink_size": 1}', "key 'recent_size': is 0"),
        ("0.5\n", '{"recent_size": 8, "sink_size": "1"}', "key 'sink_size': is '1'"),
        ("0.5\n", "[", "is not JSON"),
        ("0.5 " * 1025, '{"recent_size": 8, "sink_size": 1}', "1 layers x 1025 heads"),
        ("0.5\n" * 1025, '{"recent_size": 8, "sink_size": 1}', "1025 layers x 1 heads"),
    ],
)
def test_broken_duo_attention_files(tmp_path: Path, tsv: str, config: str | None, message: str) -> None:
    (tmp_path / "full_attention_heads.tsv").write_text(tsv)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(HeadFileError) as caught:
        load_profile(tmp_path)
    assert message in str(caught.value)


def test_an_error_survives_the_way_between_processes() -> None:
    error = HeadFileError("a.json", "line 1", "is wrong", "Correct it.")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.place) == (str(error), "line 1")


FUZZ_CASES = 400


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_file_is_read_or_refused_but_never_crashes(
    write_file: WriteFile, v1: dict[str, Any], native_document: dict[str, Any], seed: int
) -> None:
    draw = random.Random(seed)
    v2 = {**v1, "full_attention_layers": [3, 7]}
    v3 = {"num_layers": 4, "full_attention_layers": [1, 3], "num_full_layers": 2, "dense_full_layers": 1}
    v3 |= {
        "num_kv_heads": 2,
        "num_q_heads": 4,
        "head_dim": 8,
        "frac_global": 0.4,
        "window": 9,
        "sink_size": 1,
    }
    texts = [json.dumps(document) for document in (v1, v2, v3, native_document)]
    outcomes = {"read": 0, "refused": 0}
    for case in range(FUZZ_CASES):
        content = mutated(draw, draw.choice(texts).encode())
        path = write_file(content)
        try:
            load_profile(path)
            outcomes["read"] += 1
        except HeadFileError:
            outcomes["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed} case {case}: {content!r}") from error
    # Both happen, or the test tests nothing.
    assert min(outcomes.values()) >= FUZZ_CASES // 20, outcomes


SPLICES = (
    *(
        b"null",
        b"true",
        b"-1",
        b"1e400",
        b"NaN",
        b'"x"',
        b"[]",
        b"{}",
        b"[[]]",
        b"99999999999999999999",
        b"0.5",
    ),
    *(b"0", b"1", b"2", b'"global"', b'"local"'),
)


def mutated(draw: random.Random, content: bytes) -> bytes:
    """One or two of: cut short, flip a byte, delete or double a span, put another JSON value in place of one."""
    for _ in range(draw.choice((1, 1, 2))):
        start = draw.randrange(len(content) or 1)
        stop = min(len(content), start + draw.randint(1, 12))
        kind = draw.randrange(12)
        if kind == 0:
            content = content[:start]
        elif kind == 1:
            content = content[:start] + bytes([draw.randrange(256)]) + content[start + 1 :]
        elif kind == 2:
            content = content[:start] + content[stop:]
        elif kind == 3:
            content = content[:stop] + content[start:]
        else:
            content = replaced_value(draw, content)
    return content


def replaced_value(draw: random.Random, content: bytes) -> bytes:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return content
    places: list[tuple[Any, Any]] = []
    level: list[Any] = [document]
    while level:
        item = level.pop()
        if isinstance(item, dict | list):
            keys = list(item) if isinstance(item, dict) else range(len(item))
            places += [(item, key) for key in keys]
            level += [item[key] for key in keys]
    if not places:
        return content
    container, key = draw.choice(places)
    container[key] = "@"
    return json.dumps(document).encode().replace(b'"@"', draw.choice(SPLICES), 1)
