"""Check a REDKNOT configuration in the process that the user looks at.

What: after the platform has checked a `VllmConfig`, REDKNOT's own checks run, if REDKNOT is its attention backend.
Why: vLLM offers plugins no hook on a finished configuration; without one a wrong head file or an unsupported feature
would only surface as a traceback of the engine-core process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm_redknot.patches.ledger import Patch


class StartRefusedError(RuntimeError):
    """REDKNOT cannot serve this configuration; the message says why and what to change."""


def wrap(original: Callable[..., None]) -> Callable[..., None]:
    """The original, then REDKNOT's checks."""

    @functools.wraps(original)
    def check_and_update_config(cls: type, vllm_config: Any) -> None:
        original(cls, vllm_config)
        from vllm_redknot.support import check_engine_config

        try:
            check_engine_config(vllm_config)
        except ValueError as error:
            # Pydantic would bury a ValueError of this call in a dump of the whole configuration.
            raise StartRefusedError(str(error)) from error

    return check_and_update_config


def owner_of(platform_class: type) -> type:
    """The class that defines the method for a platform: its own or an ancestor's."""
    return next(base for base in platform_class.__mro__ if "check_and_update_config" in vars(base))


def patch(module: str, owner: str) -> Patch:
    """The patch for one platform class."""
    return Patch(
        name="early_checks",
        module=module,
        symbol=f"{owner}.check_and_update_config",
        parameters=("cls", "vllm_config"),
        wrap=wrap,
        why="no plugin hook on a finished configuration",
        versions="0.32, 0.33",
        upstream="none",
        removable_when="vLLM calls plugins with the finished VllmConfig",
    )
