"""Which requests skip rows. The scheduler's and the worker's process decide alike, from the request alone."""

from __future__ import annotations

from typing import Any, Final

OFF_KEY: Final = "redknot_rows"
"""Key of `SamplingParams.extra_args` (`vllm_xargs` in the API); its value "off" turns row skipping off."""


def skips_rows(sampling_params: Any | None) -> bool:
    """Whether a request's prompt tokens may skip rows.

    Args:
        sampling_params: vLLM's `SamplingParams`, None for a pooling request.

    Returns:
        False for requests that need every token's hidden state (prompt logprobs, pooling) or ask for it.
    """
    if sampling_params is None or sampling_params.prompt_logprobs is not None:
        return False
    extra = sampling_params.extra_args
    return not (isinstance(extra, dict) and extra.get(OFF_KEY) == "off")
