from pathlib import Path

import pytest

from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.tokenizer_file import read_tokenizer


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CliError, match=f"{tmp_path}/tokenizer.json: no such file: give a folder with"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": null}'])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CliError, match=f"{tmp_path}/tokenizer.json: cannot be read as a tokenizer"):
        read_tokenizer(tmp_path)
