"""Documents of a prompt as a request marks them by their text, and where they stand in its tokens.

A tokenizer merges a text's first and last characters with what they are joined to, and a chat template may strip
white space. So a text is found by its tokens but for a few at both ends, and what agrees is the document.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.spans import Span

MAX_TEXTS: Final = 256
MAX_TEXT_BYTES: Final = 4 << 20
"""UTF-8 bytes of all texts of a request."""
EDGE: Final = 8
"""Tokens at each end of a text that may differ in the prompt; at most a quarter of a short one."""

TextTokens = npt.NDArray[np.int32]


class Located(NamedTuple):
    """Where texts are: disjoint spans in the order of the prompt, and the numbers of those that are not there."""

    spans: tuple[Span, ...]
    missing: tuple[int, ...]


def parse_texts(value: Any) -> tuple[str, ...]:
    """Texts from a request's JSON: a list of strings. Raises ReuseError, with the number of the text."""
    if not isinstance(value, list | tuple) or len(value) > MAX_TEXTS:
        raise ReuseError(f"texts: give a list of at most {MAX_TEXTS} strings")
    size = 0
    for number, text in enumerate(value):
        if not isinstance(text, str):
            raise ReuseError(f"texts[{number}] is {text!r:.60}: give a string")
        try:
            size += len(text.encode())
        except UnicodeEncodeError as error:
            raise ReuseError(f"texts[{number}] is no Unicode text: {error.reason}") from error
    if size > MAX_TEXT_BYTES:
        raise ReuseError(f"texts have {size} bytes: give at most {MAX_TEXT_BYTES} in all")
    return tuple(value)


def locate(prompt: TextTokens, texts: Sequence[str], tokens_of: Callable[[str], TextTokens]) -> Located:
    """Find texts in a prompt.

    Each is looked for behind the one before it that was found, and else anywhere, where no other was found; as it is,
    and else without white space at its ends.

    Args:
        prompt: int32 [n].
        texts: documents.
        tokens_of: int32 [k], the token ids of a text alone.
    """
    search, missing, cursor = _Search(prompt), [], 0
    for number, text in enumerate(texts):
        forms = dict.fromkeys((text, text.strip()))
        tries = (
            search.find(tokens_of(form), start) for start in dict.fromkeys((cursor, 0)) for form in forms
        )
        span = next((found for found in tries if found is not None), None)
        if span is None:
            missing.append(number)
        else:
            search.take(span)
            cursor = span.end
    return Located(tuple(search.taken), tuple(missing))


class _Search:
    """A prompt, and the places in it that are taken."""

    def __init__(self, prompt: TextTokens) -> None:
        self.taken: list[Span] = []
        self._prompt = prompt
        self._text = _as_text(prompt)

    def take(self, span: Span) -> None:
        """Nothing else is found there."""
        self.taken.append(span)
        self.taken.sort()

    def find(self, tokens: TextTokens, start: int) -> Span | None:
        """The first place from `start` on that is not taken and agrees with `tokens` but for their ends."""
        edge = min(EDGE, len(tokens) // 4)
        core = _as_text(tokens[edge : len(tokens) - edge])
        if not core:
            return None
        for gap in self._gaps(start):
            begin = self._text.find(core, gap.begin, gap.end)
            if begin >= 0:
                end = begin + len(core)
                before = self._prompt[max(gap.begin, begin - edge) : begin]
                after = self._prompt[end : min(gap.end, end + edge)]
                return Span(
                    begin - _agreeing(before[::-1], tokens[:edge][::-1]),
                    end + _agreeing(after, tokens[len(tokens) - edge :]),
                )
        return None

    def _gaps(self, start: int) -> Iterator[Span]:
        for span in self.taken:
            if start < span.begin:
                yield Span(start, span.begin)
            start = max(start, span.end)
        yield Span(start, len(self._prompt))


def _agreeing(left: TextTokens, right: TextTokens) -> int:
    """How many of the first tokens are equal."""
    length = min(len(left), len(right))
    unequal = np.flatnonzero(left[:length] != right[:length])
    return int(unequal[0]) if len(unequal) else length


def _as_text(tokens: TextTokens) -> str:
    """A character per token id: Python searches strings in linear time. Vocabularies are smaller than Unicode."""
    return tokens.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
