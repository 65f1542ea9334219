"""Which files are documents, and with which tokens."""

import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from vllm_redknot.reuse import document_files
from vllm_redknot.reuse.document_files import Document, Skipped, read_documents

WORDS = {word: number for number, word in enumerate(["<unk>", "<s>", "one", "two", "three"])}


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer(WordLevel(WORDS, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return made


def read(tokenizer: Tokenizer, *paths: Path, opening: tuple[int, ...] = ()) -> list[Document | Skipped]:
    return list(read_documents(paths, tokenizer, opening, shortest=3, longest=5))


def problem(tokenizer: Tokenizer, path: Path) -> str:
    (found,) = read(tokenizer, path)
    assert isinstance(found, Skipped)
    assert found.path == path
    return found.problem


def test_a_document_is_its_text_and_nothing_before_it_unless_asked(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone two\nthree".encode())
    (plain,) = read(tokenizer, path)
    (opened,) = read(tokenizer, path, opening=(1,))
    assert isinstance(plain, Document)
    assert isinstance(opened, Document)
    assert plain.to_json() == {"tokens": [2, 3, 4]}
    assert opened.to_json() == {"tokens": [1, 2, 3, 4]}


def test_files_keep_their_order_and_one_that_is_bad_holds_up_no_other(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for name in ("a", "c"):
        (tmp_path / name).write_text("one two three")
    found = read(tokenizer, *(tmp_path / name for name in "abc"))
    assert [(one.path.name, type(one)) for one in found] == [("a", Document), ("b", Skipped), ("c", Document)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"one \xff two", "is no UTF-8 text: byte 4 is 0xff"),
        (b"one two", "has 2 tokens: documents of less than 3 are never looked for"),
        (b"one " * 6, "has 6 tokens: give at most 5"),
    ],
)
def test_what_is_no_document_is_named_with_what_would_be_one(
    tokenizer: Tokenizer, tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert expected in problem(tokenizer, path)


def test_what_is_no_file_is_named_and_not_waited_for(tokenizer: Tokenizer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    assert "no regular file" in problem(tokenizer, tmp_path / "pipe")
    assert "no regular file" in problem(tokenizer, tmp_path / "folder")
    assert "no regular file" in problem(tokenizer, Path("/dev/zero"))
    assert "cannot be read: No such file" in problem(tokenizer, tmp_path / "missing")
    assert "cannot be read" in problem(tokenizer, tmp_path / "loop")


def test_a_file_beyond_the_bound_is_not_read_to_its_end(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_files, "MAX_FILE_BYTES", 2**20)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    assert "has more than 1 MiB" in problem(tokenizer, tmp_path / "large")
