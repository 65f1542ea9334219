"""No damaged file passes: every bit of a small file is flipped, and it is cut at every length."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from store_world import GLOBAL, SCOPE, disk_tier, document, expected_kv, only_file, write

from vllm_redknot.reuse import container
from vllm_redknot.reuse.container import PIECE_BYTES
from vllm_redknot.reuse.faults import Miss, SegmentError
from vllm_redknot.reuse.fingerprint import Fingerprint
from vllm_redknot.reuse.loads import read_segment
from vllm_redknot.reuse.scope import Scope

TOKENS = document(1, 40)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    write(disk_tier(tmp_path / "store"), TOKENS)
    return only_file(tmp_path / "store")


def reason_of(path: Path, content: bytes) -> Miss | None:
    """Why a file of this content is not served; None if it is."""
    # Some file systems put a file that is overwritten on the disk at once, which takes long.
    path.unlink()
    path.write_bytes(content)
    try:
        found = read_segment(disk_tier(path.parent), path.stem.split("-")[1])
    except SegmentError as error:
        return error.reason
    assert torch.equal(found.kv, expected_kv(TOKENS)), "a damaged file was served"
    return None


def test_the_safetensors_library_reads_a_segment(stored: Path) -> None:
    with safe_open(stored, "pt") as file:
        assert set(file.keys()) == {"tokens", "digests", "seal", "kv"}
        assert file.get_tensor("tokens").tolist() == TOKENS
        assert torch.equal(file.get_tensor("kv"), expected_kv(TOKENS))
        assert Fingerprint(**json.loads(file.metadata()["fingerprint"])) == SCOPE.fingerprint


def test_any_flipped_bit_is_found(stored: Path) -> None:
    good = stored.read_bytes()
    # Every byte, a bit of it that changes from byte to byte; all bits of the header's length.
    flips = [(at, 1 << at % 8) for at in range(len(good))] + [
        (at, 1 << bit) for at in range(8) for bit in range(8)
    ]
    for at, bit in flips:
        bad = bytearray(good)
        bad[at] ^= bit
        assert reason_of(stored, bytes(bad)) in (Miss.CORRUPT, Miss.TRUNCATED, Miss.FOREIGN), f"byte {at}"
    assert reason_of(stored, good) is None


def test_any_cut_is_found_and_so_are_extra_bytes(stored: Path) -> None:
    good = stored.read_bytes()
    for length in range(len(good)):
        assert reason_of(stored, good[:length]) is Miss.TRUNCATED, f"{length} bytes"
    assert reason_of(stored, good + b"\0") is Miss.CORRUPT


def test_pages_that_never_reached_the_disk_are_found(stored: Path) -> None:
    good = stored.read_bytes()
    for at in range(0, len(good), 512):
        hole = good[:at] + bytes(len(good[at : at + 512])) + good[at + 512 :]
        assert reason_of(stored, hole) in (Miss.CORRUPT, Miss.FOREIGN)


def test_a_sealed_file_of_another_scope_version_or_kind_is_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Path
) -> None:
    write(disk_tier(tmp_path / "global", scope=Scope(SCOPE.fingerprint, GLOBAL)), TOKENS)
    assert reason_of(stored, only_file(tmp_path / "global").read_bytes()) is Miss.FOREIGN
    for name, value in (("FORMAT_VERSION", 2), ("FORMAT", "other")):
        with monkeypatch.context() as patch:
            patch.setattr(container, name, value)
            write(disk_tier(tmp_path / name), TOKENS)
        assert reason_of(stored, only_file(tmp_path / name).read_bytes()) is Miss.FOREIGN


Edit = Callable[[dict[str, dict[str, object]]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header["tokens"].update(shape=[2**62]),
        lambda header: header["tokens"].update(shape=[40.0]),
        lambda header: header["tokens"].update(shape=[True]),
        lambda header: header["tokens"].update(shape="40"),
        lambda header: header["kv"].update(data_offsets=[0, 10]),
        lambda header: header["kv"].update(dtype="F16"),
        lambda header: header.pop("__metadata__"),
        lambda header: header.update(more=header["kv"]),
        lambda header: header["__metadata__"].update(layout="[]"),
        lambda header: header["__metadata__"].update(layout=7),
        lambda header: header["__metadata__"].update(fingerprint="{}"),
        lambda header: header["__metadata__"].update(layout="[" * 100_000),
    ],
)
def test_a_header_made_up_by_somebody_is_refused(stored: Path, edit: Edit) -> None:
    good = stored.read_bytes()
    (length,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    assert reason_of(stored, struct.pack("<Q", len(text)) + text + good[8 + length :]) is Miss.CORRUPT


def test_a_segment_of_several_pieces_is_checked_in_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PIECE_BYTES % 16 == 0
    for module in ("container", "disk"):
        monkeypatch.setattr(f"vllm_redknot.reuse.{module}.PIECE_BYTES", 256)
    write(disk_tier(tmp_path / "store"), TOKENS)
    path = only_file(tmp_path / "store")
    good = path.read_bytes()
    size = expected_kv(TOKENS).nbytes
    assert size > 4 * 256
    assert reason_of(path, good) is None
    for at in range(len(good) - size, len(good), 128):
        assert reason_of(path, good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :]) is Miss.CORRUPT
    # Two sound pieces in each other's place.
    swapped = good[:-size] + good[-size + 256 : -size + 512] + good[-size : -size + 256] + good[-size + 512 :]
    assert reason_of(path, swapped) is Miss.CORRUPT
