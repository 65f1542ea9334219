"""A model's tokenizer, for the commands that write prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_redknot.cli.errors import CliError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """Raises CliError where tokenizer.json is missing or damaged."""
    # It comes with vLLM and transformers, not with the command.
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    remedy = "give a folder with the model's tokenizer.json"
    if not path.is_file():
        raise CliError(f"{path}: no such file: {remedy}")
    try:
        return Tokenizer.from_file(str(path))
    # The library raises nothing narrower.
    except Exception as error:
        raise CliError(f"{path}: cannot be read as a tokenizer ({error}): {remedy}") from error
