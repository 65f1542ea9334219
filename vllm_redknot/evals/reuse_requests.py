"""What the engine of `redknot verify-reuse` is asked: a prompt made of documents, with or without stored KV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm_redknot.evals.requests import Request, request_from_json
from vllm_redknot.reuse.plan import MIN_TOKENS
from vllm_redknot.reuse.policy import Blend, repair_policy

Range = tuple[int, int]


@dataclass(frozen=True)
class ReuseRequest(Request):
    """A `Request` whose answer has distributions of its `forced` tokens, `top` of each.

    Attributes:
        documents: [begin, end) of the prompt's documents. Each is encoded alone and stored before the prompt is asked.
        policy: what the request says of repair, as {"boundary": 16}; None computes the whole prompt and stores nothing.
        reused: prompt tokens that should come from the store: an answer with few would tell nothing of reuse.
    """

    documents: tuple[Range, ...] = ()
    policy: Mapping[str, Any] | None = None
    reused: int = 0

    def to_json(self) -> dict[str, Any]:
        """The line that `reuse_request_from_json` reads."""
        return asdict(self)


def reuse_request_from_json(line: Mapping[str, Any]) -> ReuseRequest:
    """Raises KeyError or TypeError for what `to_json` did not write."""
    plain = request_from_json(line)
    return ReuseRequest(
        **{key: getattr(plain, key) for key in Request.__dataclass_fields__},
        documents=tuple((begin, end) for begin, end in line["documents"]),
        policy=line["policy"],
        reused=line["reused"],
    )


def reusable(documents: Iterable[Range], boundary: int) -> int:
    """Tokens of these stored documents that need no forward pass."""
    policy = repair_policy(boundary)
    kept = [end - begin - policy.recomputed(begin, 0, end - begin) for begin, end in documents]
    return sum(tokens for tokens in kept if tokens >= MIN_TOKENS)


def spared(documents: Iterable[Range], share: float) -> int:
    """Tokens of these stored documents that blend does not choose."""
    return sum(end - begin - (Blend(share).chosen(end - begin) if begin else 0) for begin, end in documents)
