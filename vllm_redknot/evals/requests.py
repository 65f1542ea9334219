"""What an engine is asked and what it answers, as lines of JSON: all that passes between the two processes."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """One prompt, by token ids, so that both engines see the same.

    Attributes:
        key: names the request within its run.
        prompt: token ids.
        max_tokens: length of the greedy continuation; 0 asks for `spans` alone.
        stop: the continuation ends before any of these strings.
        forced: token ids whose probability after the prompt is asked for, each given the ones before it.
        spans: [start, end) of prompt tokens whose distributions, given all before them, are asked for; start >= 1.
        top: how many of the most likely tokens are returned for each.
    """

    key: str
    prompt: Ids
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    forced: Ids = ()
    spans: tuple[tuple[int, int], ...] = ()
    top: int = 0

    def to_json(self) -> dict[str, Any]:
        """The line that `request_from_json` reads."""
        return asdict(self)


def request_from_json(line: Mapping[str, Any]) -> Request:
    """Raises KeyError or TypeError for what `to_json` did not write."""
    return Request(
        key=line["key"],
        prompt=tuple(line["prompt"]),
        max_tokens=line["max_tokens"],
        stop=tuple(line["stop"]),
        forced=tuple(line["forced"]),
        spans=tuple((start, end) for start, end in line["spans"]),
        top=line["top"],
    )


@dataclass(frozen=True)
class Answer:
    """What an engine says to a `Request`.

    Attributes:
        text: the greedy continuation.
        forced_logprobs: natural logarithms, one per token of `forced`.
        scored: distributions of the tokens in `spans`, in order; None where there are none.
        reused: prompt tokens whose KV was not computed; 0 where the engine was not asked to reuse any.
    """

    key: str
    text: str = ""
    forced_logprobs: tuple[float, ...] = ()
    scored: Distributions | None = None
    reused: int = 0

    def to_json(self) -> dict[str, Any]:
        """The line that `answer_from_json` reads."""
        return {
            "key": self.key,
            "text": self.text,
            "forced_logprobs": list(self.forced_logprobs),
            "scored": None if self.scored is None else self.scored.to_json(),
            "reused": self.reused,
        }


@dataclass(frozen=True)
class Distributions:
    """What was expected at N places of a text.

    Attributes:
        ids: int32 [N, 1 + top]: the token that is there, then the most likely ones, falling.
        logprobs: float32 [N, 1 + top]: their natural logarithms.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        """Shape and little-endian bytes in base64."""
        return {
            "shape": list(self.ids.shape),
            "ids": base64.b64encode(self.ids.astype("<i4").tobytes()).decode(),
            "logprobs": base64.b64encode(self.logprobs.astype("<f4").tobytes()).decode(),
        }


def answer_from_json(line: Mapping[str, Any]) -> Answer:
    """Raises KeyError, TypeError or ValueError for what `to_json` did not write."""
    logprobs = tuple(float(value) for value in line["forced_logprobs"])
    if not isinstance(line["key"], str) or not isinstance(line["text"], str):
        raise TypeError("key and text must be strings")
    scored = None if line["scored"] is None else _distributions(line["scored"])
    return Answer(line["key"], line["text"], logprobs, scored, int(line["reused"]))


def _distributions(line: Mapping[str, Any]) -> Distributions:
    import numpy as np

    rows, columns = line["shape"]
    ids = np.frombuffer(base64.b64decode(line["ids"], validate=True), "<i4").reshape(rows, columns)
    logprobs = np.frombuffer(base64.b64decode(line["logprobs"], validate=True), "<f4").reshape(rows, columns)
    return Distributions(ids, logprobs)
