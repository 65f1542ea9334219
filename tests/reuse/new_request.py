"""A request as the tracker sees one that has just come."""

from types import SimpleNamespace
from typing import Any


def new_request(wish: Any, tokens: int = 100) -> Any:
    """Request "a" of so many tokens, with this wish."""
    return SimpleNamespace(
        request_id="a",
        num_computed_tokens=0,
        num_in_flight_tokens=0,
        num_prompt_tokens=tokens,
        prompt_token_ids=list(range(tokens)),
        sampling_params=SimpleNamespace(extra_args={"redknot_reuse": wish}),
    )
