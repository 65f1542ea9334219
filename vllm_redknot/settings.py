"""REDKNOT's settings inside a `VllmConfig`."""

from __future__ import annotations

from typing import Any

from vllm_redknot.config import RedknotConfig

BACKEND_NAME = "REDKNOT"


def is_requested(vllm_config: Any) -> bool:
    """Whether REDKNOT is the attention backend, of all layers or of a kind of layers."""
    attention = vllm_config.attention_config
    chosen = [attention.backend, *(getattr(attention, "backend_per_kind", None) or {}).values()]
    return any(getattr(backend, "name", backend) == BACKEND_NAME for backend in chosen)


def settings_of(vllm_config: Any) -> RedknotConfig:
    """The validated settings.

    Raises:
        RedknotConfigError: A key or value is wrong.
    """
    additional = vllm_config.additional_config
    return RedknotConfig.from_additional_config(additional if isinstance(additional, dict) else None)
