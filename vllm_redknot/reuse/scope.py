"""A scope: which segments may stand in for each other. And the names they go by."""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.fingerprint import Fingerprint, canonical, short_digest
from vllm_redknot.reuse.format import SegmentFormat

MAX_TOKEN_ID: Final = 2**31 - 1
FILE_NAME: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})\.safetensors")


@dataclass(frozen=True)
class Scope:
    """One rank of one model with one way of storing: segments of equal scope and tokens hold equal KV."""

    fingerprint: Fingerprint
    format: SegmentFormat

    @cached_property
    def name(self) -> str:
        """32 hex digits."""
        return short_digest(f"{self.fingerprint.digest()} {canonical(self.format.to_json())}".encode())

    def file_name(self, content: str) -> str:
        return f"{self.name}-{content}.safetensors"

    def to_json(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint.to_json(), "format": self.format.to_json()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Scope:
        """The inverse of `to_json`. Raises ReuseError, TypeError, KeyError or ValueError for anything else."""
        return cls(
            Fingerprint.from_json(document["fingerprint"]), SegmentFormat.from_json(document["format"])
        )


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Token ids as little-endian int32. Raises ReuseError for what is no token id."""
    try:
        packed = array("i", tokens)
    except (TypeError, OverflowError) as error:
        raise ReuseError(f"token ids must be integers from 0 to {MAX_TOKEN_ID}: {error}") from error
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def content_id(tokens: Sequence[int]) -> str:
    """32 hex digits that name a run of token ids, whatever the model: the same on every rank."""
    return short_digest(token_bytes(tokens))
