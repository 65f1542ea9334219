"""`redknot store` on directories that stores wrote."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from vllm_redknot.reuse.disk import DiskTier
from vllm_redknot.reuse.fingerprint import Fingerprint
from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.scope import Scope, content_id, token_bytes

LAYOUT = SegmentFormat((0, 1), 64, "bfloat16", ((None, 32),) * 2, ((0, 4),) * 2)
FINGERPRINT = Fingerprint("a" * 32, "b" * 32, "bfloat16", "{}", "c" * 16, model="org/small\x1b[31m")
Fails = Callable[..., str]


def write(folder: Path, count: int, weights: str = "a") -> None:
    scope = Scope(replace(FINGERPRINT, weights=weights * 32), LAYOUT)
    for tokens in ([seed] * 100 for seed in range(count)):
        kv = memoryview(os.urandom(LAYOUT.kv_bytes(100)))
        DiskTier(folder, scope, 2**30).write(token_bytes(tokens), content_id(tokens), kv)


@pytest.fixture
def segments(tmp_path: Path) -> Path:
    """A directory with three segments of one model and one of another."""
    write(tmp_path / "store", 3)
    write(tmp_path / "store", 1, weights="d")
    return tmp_path / "store"


def newest(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_ls_shows_models_and_segments(redknot: Run, segments: Path) -> None:
    result = redknot("store", "ls", "--store", segments, width=120)
    assert result.exit_code == 0
    assert "org/small?[31m: 3 segments, 300 tokens" in result.stdout
    assert "rank 0 of 1, weights " + "d" * 32 in result.stdout
    assert content_id([2] * 100)[:12] in result.stdout
    assert "4 segments," in result.stdout


def test_ls_has_all_of_it_as_json(redknot: Run, segments: Path) -> None:
    document = json.loads(redknot("store", "ls", "--store", segments, "--json").stdout)
    assert set(document) == {"store", "count", "bytes", "models", "segments"}
    assert document["count"] == len(document["segments"]) == 4
    assert document["bytes"] == sum(path.stat().st_size for path in segments.glob("*.safetensors"))
    assert [model["segments"] for model in document["models"]] == [3, 1]
    assert document["models"][1]["fingerprint"]["weights"] == "d" * 32
    assert all(row["tokens"] == 100 and row["problem"] is None for row in document["segments"])


def test_ls_names_what_it_cannot_read_and_goes_on(redknot: Run, segments: Path) -> None:
    newest(segments).write_bytes(b"bad")
    assert "damaged" in redknot("store", "ls", "--store", segments).stdout
    rows = json.loads(redknot("store", "ls", "--store", segments, "--json").stdout)["segments"]
    assert [row["problem"] is None for row in rows].count(False) == 1


def test_verify_reads_every_byte(redknot: Run, segments: Path) -> None:
    assert "All are sound." in redknot("store", "verify", "--store", segments).stdout
    bad = newest(segments)
    flip(bad)
    result = redknot("store", "verify", "--store", segments, width=400)
    assert result.exit_code == 1
    assert f"{bad}: checksum mismatch" in result.stdout
    result = redknot("store", "verify", "--store", segments, "--json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert (problem["file"], problem["reason"]) == (bad.name, "corrupt")
    assert bad.exists()


def test_gc_removes_what_is_damaged_half_written_or_too_much(redknot: Run, segments: Path) -> None:
    (segments / ".writing-77").write_bytes(b"half")
    (segments / "notes.txt").write_text("mine")
    bad = newest(segments)
    flip(bad)
    size = bad.stat().st_size
    result = redknot("store", "gc", "--store", segments, "--max-bytes", str(2 * size), "--json")
    document = json.loads(result.stdout)
    assert document["removed"]["temporaries"] == 1
    assert [problem["file"] for problem in document["removed"]["damaged"]] == [bad.name]
    assert len(document["removed"]["evicted"]) == 1
    assert (document["count"], document["bytes"]) == (2, 2 * size)
    assert sorted(path.suffix for path in segments.iterdir()) == ["", ".safetensors", ".safetensors", ".txt"]
    assert "Removed 0 damaged segments." in redknot("store", "gc", "--store", segments).stdout
    assert "Evicted 2 segments" in redknot("store", "gc", "--store", segments, "--max-bytes", "0").stdout


def test_a_directory_that_is_none_is_one_line(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in ("ls", "verify", "gc"):
        for path in (tmp_path / "missing", tmp_path / "file"):
            assert f"{path} is no directory" in fails("store", command, "--store", path)
    assert not (tmp_path / "missing").exists()


def test_gc_does_not_close_a_directory_that_others_use(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    tmp_path.chmod(0o755)
    assert "holds other files, such as 'notes.txt'" in fails("store", "gc", "--store", tmp_path)
    assert (tmp_path.stat().st_mode & 0o777) == 0o755


def test_wrong_usage_is_status_2(fails: Fails, segments: Path) -> None:
    assert "--store" in fails("store", "ls", status=2)
    assert "no number of bytes" in fails("store", "gc", "--store", segments, "--max-bytes", "much", status=2)
    assert "lsx" in fails("store", "lsx", status=2)


@pytest.mark.parametrize("command", ["add", "ls", "verify", "gc"])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_store_command_explains_itself_at_any_width(redknot: Run, command: str, width: int) -> None:
    result = redknot("store", command, "--help", width=width)
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert "Example" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= width


def test_the_store_commands_need_neither_vllm_nor_torch_nor_numpy(segments: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('vllm', 'torch', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        "from vllm_redknot.cli.main import main\n"
        "main()"
    )
    for command in ("ls", "verify", "gc"):
        arguments = [sys.executable, "-c", code, "store", command, "--store", str(segments)]
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")
