"""The receipt of the quality gate: which model bears reuse, with what repair, and the figures that say so.

`redknot verify-reuse` writes it; a server whose settings say `"reuse": "on"` reads it. Plain data of at most
`MAX_BYTES`, and untrusted: anything but what the gate writes is an error.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.fingerprint import Fingerprint
from vllm_redknot.reuse.policy import BLEND, BOUNDARY
from vllm_redknot.whole_file import write_whole

KIND: Final = "redknot.reuse-receipt"
FORMAT: Final = 1
FILE_NAME: Final = "redknot_reuse.json"
"""Beside the model, like its head classes."""
CACHE_FOLDER: Final = "receipts"
"""Within the setting `cache_dir`: a file per fingerprint."""
MAX_BYTES: Final = 256 * 1024
FEW_QUESTIONS: Final = 50
"""Of each data set: with fewer, dense's interval is so wide that a large loss lies within."""
Count = Annotated[int, Field(ge=0, le=2**31)]


class ReceiptError(ReuseError):
    """A receipt that is not there, cannot be read, or is of something else: which, why, and the remedy."""


class Part(BaseModel):
    """Strict: no conversions, no keys that are not known, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Interval(Part):
    """A mean and the ends of its 95% interval."""

    value: float
    low: float
    high: float


class Figure(Part):
    """One task by one metric: full recompute, reuse, and the paired difference.

    `position` is the place in the prompt, from 0, of the document that tells; None for all places. What compares the
    two answers, such as a divergence, has a value of `reuse` alone.
    """

    task: str
    metric: str
    position: int | None
    n: Annotated[int, Field(ge=1)]
    dense: Interval | None
    reuse: Interval
    difference: Interval | None
    within_noise: bool | None


class Passed(Part):
    """One line of the budget, which was kept."""

    task: str
    metric: str
    rule: str
    dense: float
    reuse: float
    limit: float
    passed: Literal[True]


class Budget(Part):
    """What reuse may cost, as shares and nats per token."""

    needle_recall: Annotated[float, Field(ge=0, le=1)]
    nll_increase: Annotated[float, Field(ge=0)]


class Asked(Part):
    """How much was asked, in documents, tokens and questions."""

    documents: Count
    document_tokens: Count
    texts: Count
    questions: Count
    length: Count


class Receipt(Part):
    """The whole file. `fingerprint` is `Fingerprint.to_json()` of the engine that answered.

    `share` is of the policy "blend", whose `boundary` is 0; None for "boundary".
    """

    kind: Literal["redknot.reuse-receipt"]
    format: Literal[1]
    fingerprint: dict[str, str | int]
    policy: Literal["boundary", "blend"]
    boundary: Count
    share: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0)]
    asked: Asked
    versions: dict[str, str | None]
    budget: Budget
    checks: Annotated[list[Passed], Field(min_length=1)]
    figures: Annotated[list[Figure], Field(min_length=1)]

    @property
    def is_thin(self) -> bool:
        """Whether it rests on too few questions to see a loss."""
        return self.asked.questions < FEW_QUESTIONS

    @model_validator(mode="after")
    def _has_its_policys_numbers(self) -> Self:
        if (self.policy == BLEND) != (self.share is not None) or (self.share is not None and self.boundary):
            raise ValueError(f"policy {self.policy} with boundary {self.boundary} and share {self.share}")
        return self

    @field_validator("fingerprint")
    @classmethod
    def _is_fingerprint(cls, document: dict[str, str | int]) -> dict[str, str | int]:
        try:
            Fingerprint.from_json(document)
        except TypeError as error:
            raise ValueError(f"is no fingerprint: {error}") from error
        return document


def read_receipt(path: Path) -> Receipt:
    """The receipt in `path`. Raises ReceiptError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ReceiptError(f"{path} is not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ReceiptError(f"{path}: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise ReceiptError(f"{path} is larger than {MAX_BYTES} bytes, which no receipt is")
    try:
        return Receipt.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ReceiptError(f"{path} is no valid receipt: {_shown(place)}: {first['msg']}") from error


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Whole or not at all; folders are made. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, receipt.model_dump_json(indent=1) + "\n")


def receipt_path(given: Path) -> Path:
    """Where a receipt is put by the name of a file that ends in .json, or by that of a folder."""
    path = given.expanduser()
    return path if path.suffix == ".json" and not path.is_dir() else path / FILE_NAME


def cached_path(cache: Path, fingerprint: Fingerprint) -> Path:
    """Where the receipt of a model lies whose own folder cannot be written."""
    return cache / CACHE_FOLDER / f"{fingerprint.digest()}.json"


def places(given: str | None, folder: Path, cache: Path, fingerprint: Fingerprint) -> list[Path]:
    """Where a server looks for its receipt: where the setting says, or beside the model and then in the cache."""
    if given is None:
        return [folder / FILE_NAME, cached_path(cache, fingerprint)]
    path = Path(given).expanduser()
    return [path / FILE_NAME if path.is_dir() else path]


def differences(
    receipt: Receipt, fingerprint: Fingerprint, boundary: int, share: float | None = None
) -> list[str]:
    """What of a running model and its repair is not as in the receipt. `share`: of blend; None for a boundary."""
    stated = Fingerprint.from_json(receipt.fingerprint).to_json()
    found = [
        f"{key} is {_shown(value)} here and {_shown(stated[key])} there"
        for key, value in fingerprint.to_json().items()
        if key != "model" and value != stated[key]
    ]
    if (share is None) != (receipt.share is None):
        here = BOUNDARY if share is None else BLEND
        found.append(
            f'policy is "{here}" here and "{receipt.policy}" there (give {{"policy": "{receipt.policy}"}})'
        )
    elif share is not None and receipt.share is not None:
        if share < receipt.share:
            found.append(
                f'share is {share} here and {receipt.share} there (give {{"share": {receipt.share}}})'
            )
    elif boundary < receipt.boundary:
        found.append(
            f'boundary is {boundary} here and {receipt.boundary} there (give {{"boundary": {receipt.boundary}}})'
        )
    return found


def matching_receipt(
    paths: Sequence[Path], fingerprint: Fingerprint, boundary: int, share: float | None = None
) -> tuple[Receipt, Path]:
    """The first receipt of `paths` for this model and a boundary of at most `boundary` tokens.

    Or, where a `share` is given, for blend with at most this share.

    Raises:
        ReceiptError: There is none; says what is wrong with the first one that is there.
    """
    problem = ""
    for path in paths:
        if not path.exists() and not path.is_symlink():
            continue
        try:
            receipt = read_receipt(path)
        except ReceiptError as error:
            problem = problem or str(error)
            continue
        differing = differences(receipt, fingerprint, boundary, share)
        if not differing:
            return receipt, path
        problem = problem or f"the receipt {path} is of something else: {'; '.join(differing)}"
    raise ReceiptError(problem or f"no receipt in {' or '.join(map(str, paths))}")


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 100 else text[:97] + "..."
