"""What one request says about reuse: `extra_args={"redknot_reuse": ...}`, or `vllm_xargs` of the OpenAI server.

"off"                                      nothing is reused or stored for this request
{"spans": [[begin, end], ...],             documents of the prompt, in tokens; they are looked up, and stored
 "texts": [text, ...],                     the same by their text; spans or texts
 "boundary": N,                            tokens recomputed at the start of each moved document
 "policy": "boundary" or "blend",          which tokens of moved documents are recomputed; without it the policy whose
                                           number is given, or else the server's
 "share": X,                               of a moved document's tokens, 0 to 1, that blend recomputes
 "reuse": false}                           nothing is taken from the store: the documents are computed and stored
'{"spans": ...}'                           the same as a JSON string: vllm_xargs takes no objects
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.policy import BLEND, BOUNDARY, POLICIES
from vllm_redknot.reuse.spans import Span, parse_spans
from vllm_redknot.reuse.texts import parse_texts

ARGUMENT: Final = "redknot_reuse"
KEYS: Final = ("spans", "texts", "boundary", "policy", "share", "reuse")
VALID: Final = (
    '"off", or an object with "spans" ([[begin, end], ...]) or "texts" (strings), "policy" ("boundary" or "blend"),'
    ' "boundary" (tokens) or "share" (0 to 1), and "reuse" (true or false)'
)


@dataclass(frozen=True)
class Control:
    """A request's wishes.

    Attributes:
        enabled: whether anything may be reused or stored.
        spans: documents that the request marks.
        texts: documents that it marks by their text; where they stand is found out with what is stored.
        boundary: tokens recomputed per moved span; None leaves it to the server.
        policy: "boundary" or "blend"; None leaves it to the server.
        share: of a moved span's tokens that blend recomputes; None leaves it to the server.
        reuse: whether stored KV is used. Without it marked documents are computed, and stored unless they are stored
            exactly: what overlaps a stored document is then of nothing but itself.
    """

    enabled: bool = True
    spans: tuple[Span, ...] = ()
    texts: tuple[str, ...] = ()
    boundary: int | None = None
    reuse: bool = True
    policy: str | None = None
    share: float | None = None

    @property
    def marks(self) -> bool:
        """Whether the request marks documents."""
        return bool(self.spans or self.texts)


OFF: Final = Control(enabled=False)


def parse_control(extra_args: Mapping[str, Any] | None, num_prompt_tokens: int) -> Control:
    """The control of a request with these extra arguments.

    Raises:
        ReuseError: The argument is none of the valid forms; the message says which are.
    """
    value = (extra_args or {}).get(ARGUMENT)
    if value is None:
        return Control()
    if isinstance(value, str) and value != "off":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ReuseError(f"{ARGUMENT} is {value!r:.80}: give {VALID}") from error
    if value == "off":
        return OFF
    if not isinstance(value, Mapping) or any(key not in KEYS for key in value):
        raise ReuseError(f"{ARGUMENT} is {value!r:.80}: give {VALID}")
    boundary = value.get("boundary")
    if boundary is not None and (not isinstance(boundary, int) or isinstance(boundary, bool) or boundary < 0):
        raise ReuseError(f"{ARGUMENT}.boundary is {boundary!r:.80}: give an integer >= 0 (tokens)")
    reuse = value.get("reuse", True)
    if not isinstance(reuse, bool):
        raise ReuseError(f"{ARGUMENT}.reuse is {reuse!r:.80}: give true or false")
    policy, share = _policy(value)
    if "spans" in value and "texts" in value:
        raise ReuseError(f'{ARGUMENT} has "spans" and "texts": give one')
    spans = parse_spans(value.get("spans", []), num_prompt_tokens)
    texts = parse_texts(value.get("texts", []))
    return Control(spans=spans, texts=texts, boundary=boundary, reuse=reuse, policy=policy, share=share)


def _policy(value: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """Policy and share; the policy follows from the number that is given."""
    share, policy = value.get("share"), value.get("policy")
    if policy is not None and policy not in POLICIES:
        raise ReuseError(f'{ARGUMENT}.policy is {policy!r:.80}: give "{BOUNDARY}" or "{BLEND}"')
    if share is not None:
        # Not a number compares false.
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise ReuseError(f"{ARGUMENT}.share is {share!r:.80}: give a number from 0 to 1")
        share = float(share)
    given = [BOUNDARY] * (value.get("boundary") is not None) + [BLEND] * (share is not None)
    if len({policy, *given} - {None}) > 1:
        raise ReuseError(
            f'{ARGUMENT} is {dict(value)!r:.80}: "boundary" is of policy "{BOUNDARY}", "share" of "{BLEND}"; give one'
        )
    return policy or (given[0] if given else None), share
