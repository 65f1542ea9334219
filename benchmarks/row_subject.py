"""What the measurements of row skipping without vLLM share: options, the model, and what a result says of both."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from benchmarks.machine import describe_machine
from tools.smollm2_folder import default_folder
from vllm_redknot.cli.target import settings, target_of_model
from vllm_redknot.evals.fingerprints import model_fingerprint
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.row_model import RowModel

RESULTS: Final = Path(__file__).parent / "results"


def options(description: str | None, length: int, output: str) -> argparse.ArgumentParser:
    """A command's options: model, head classes, tokens of a prompt, and the file in benchmarks/results."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-folder", type=Path, default=default_folder())
    parser.add_argument("--heads", help="a head-class file; without it the one a server would use")
    parser.add_argument("--length", type=int, default=length, help="tokens of a text")
    parser.add_argument("--output", type=Path, default=RESULTS / output)
    return parser


@dataclass(frozen=True)
class Subject:
    """A model's folder and the head classes that rows are skipped beside."""

    folder: Path
    heads: HeadProfile

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Subject:
        """As the options say; makes the folder of the result."""
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        folder: Path = arguments.model_folder
        return cls(folder, target_of_model(folder, settings(heads=arguments.heads)).profile)

    @cached_property
    def fingerprint(self) -> str:
        """Of the model."""
        return model_fingerprint(self.folder)

    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def model(self) -> RowModel:
        """In bf16, on the CPU."""
        return RowModel(HookedModel(self.folder, torch.bfloat16))

    def header(self, name: str, plan: list[Any]) -> dict[str, Any]:
        """What tells a journal of this measurement from another's."""
        return {name: plan, "model": self.fingerprint, "heads": self.heads.fingerprint()}

    def document(self) -> dict[str, Any]:
        """What a result says of machine, model and head classes."""
        return {
            "machine": describe_machine(),
            "model": {
                "name": self.folder.name,
                "fingerprint": self.fingerprint,
                "layers": self.heads.num_layers,
            },
            "heads": {"fingerprint": self.heads.fingerprint(), "description": self.heads.describe()},
        }
