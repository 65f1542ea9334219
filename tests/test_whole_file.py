import json
import os
from pathlib import Path

import pytest

from vllm_redknot.whole_file import write_document, write_whole


def test_a_file_is_replaced_and_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_whole(path, "first")
    write_whole(path, "zweite Fassung: größer")
    assert path.read_text(encoding="utf-8") == "zweite Fassung: größer"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    write_whole(path, "first")

    def fail(descriptor: int) -> None:
        raise OSError(28, f"no space left for {descriptor}")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "kind"), [("none/page.html", FileNotFoundError), ("folder", IsADirectoryError)]
)
def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path, name: str, kind: type[OSError]) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(kind) as found:
        write_whole(tmp_path / name, "text")
    assert found.value.filename == str(tmp_path / name)


def test_what_is_no_regular_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="no regular file"):
        write_whole(path, "text")
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_a_document_holds_no_number_that_json_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_document(path, {"share": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_document(path, {"share": float("nan")})
    assert json.loads(path.read_text()) == {"share": 0.5}
