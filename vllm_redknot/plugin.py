"""vLLM's entry point into the plugin."""

from __future__ import annotations

import logging
from functools import lru_cache

SUPPORTED_VLLM = ("0.32", "0.33")
"""vLLM releases (major.minor) whose interfaces were checked; docs/compatibility.md has the result."""

logger = logging.getLogger("vllm.redknot")


@lru_cache
def register() -> None:
    """Make REDKNOT available. vLLM calls this in every process it starts: API server, engine core, workers, registry.

    Cheap, and done once per process, failure included. What it changes is inert until REDKNOT is chosen with
    --attention-backend. A failure is logged and leaves vLLM as it was but for inert patches.
    """
    try:
        if (version := vllm_version()) and not is_supported(version):
            logger.warning(
                "vllm-redknot supports vLLM %s and this is %s: REDKNOT is not available",
                " and ".join(f"{release}.x" for release in SUPPORTED_VLLM),
                version,
            )
            return
        _register_all()
    except Exception:
        logger.exception(
            "vllm-redknot could not be registered: REDKNOT is not available, vLLM goes on without it"
        )


def vllm_version() -> str:
    """The installed vLLM's version."""
    from vllm import __version__

    return str(__version__)


def is_supported(version: str) -> bool:
    """Whether a vLLM version is one of the releases this plugin was checked against."""
    return ".".join(version.split(".")[:2]) in SUPPORTED_VLLM


def _register_all() -> None:
    from vllm_redknot.attention.registration import register_backend
    from vllm_redknot.kvcache.registration import register_spec
    from vllm_redknot.patches import apply_all

    register_spec()
    apply_all()
    # Last: the name must not be offered unless everything behind it is in place.
    register_backend()
