"""What the two kinds of `redknot profile` share: the model they may measure, and a run that its journal carries on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.model_file import ModelFile, read_model
from vllm_redknot.cli.progress import bars
from vllm_redknot.cli.tokenizer_file import read_tokenizer
from vllm_redknot.evals.fingerprints import model_fingerprint, versions
from vllm_redknot.evals.texts import TextsMissingError, sentences_in

if TYPE_CHECKING:
    from rich.progress import Progress
    from tokenizers import Tokenizer

    from vllm_redknot.profiler.hooked import HookedModel
    from vllm_redknot.profiler.journal import Journal

T = TypeVar("T")


@dataclass(frozen=True)
class Where:
    """Which model is run how, and where its results go; `dtype` is torch's name."""

    file: ModelFile
    output: Path
    device: str
    dtype: str
    restart: bool


@dataclass(frozen=True)
class Loaded:
    """What a run works with."""

    model: HookedModel
    tokenizer: Tokenizer
    journal: Journal
    bar: Progress


def read_servable(folder: Path) -> ModelFile:
    """The model in a folder, if the profiler can measure it. Raises CliError."""
    from vllm_redknot.profiler.errors import ProfilerError
    from vllm_redknot.profiler.profilable import check_profilable

    file = read_model(folder)
    if file.refused:
        refused = "; ".join(file.refused)
        raise CliError(f"REDKNOT does not serve {refused}: there is nothing to profile in {folder}")
    try:
        check_profilable(folder)
    except ProfilerError as error:
        raise CliError(str(error)) from error
    return file


def check_device(device: str) -> None:
    """Raises CliError for what is no device of this machine that computes."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise CliError(f"--device is {device!r}: {reason}: give cpu, or cuda where there is a GPU") from error


def halves(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences of a text of one's own: the first half scores, the second half verifies. Raises CliError."""
    if path.exists() and not path.is_file():
        # To open a pipe is to wait for its writer.
        raise CliError(f"{path}: is no regular file: give one of UTF-8 text")
    try:
        sentences = sentences_in(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if len(sentences) < 100:
        raise CliError(f"{path}: has {len(sentences)} sentences: give a text of at least 100")
    half = len(sentences) // 2
    return sentences[:half], sentences[half:]


def run_with_model(where: Where, header: Mapping[str, Any], work: Callable[[Loaded], T]) -> T:
    """Load the model, open OUT.journal and do `work`.

    Args:
        header: what the journal's results depend on beside model, type, device and versions.

    Raises:
        CliError: The model cannot be measured, the journal is another run's, or memory ran out.
    """
    import torch

    from vllm_redknot.profiler.errors import ProfilerError
    from vllm_redknot.profiler.hooked import HookedModel
    from vllm_redknot.profiler.journal import open_journal

    whole = {
        "model": model_fingerprint(where.file.path),
        **header,
        "dtype": where.dtype,
        "device": where.device.split(":")[0],
        "versions": {key: value for key, value in versions().items() if key in ("torch", "transformers")},
    }
    journal_path = where.output.with_name(where.output.name + ".journal")
    try:
        with open_journal(journal_path, whole, where.restart) as journal, bars() as bar:
            tokenizer = read_tokenizer(where.file.path)
            model = HookedModel(where.file.path, getattr(torch, where.dtype), where.device)
            return work(Loaded(model, tokenizer, journal, bar))
    except (ProfilerError, TextsMissingError) as error:
        raise CliError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise CliError(f"out of memory on {where.device}: give shorter --lengths ({error})") from error
