"""Inside its own process: loads vLLM and its plugins as a server does, and says what became of ours."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from vllm_redknot.cli.diagnosis.subprocesses import report_to_parent
from vllm_redknot.patches import is_applied, patches_for_this_vllm
from vllm_redknot.plugin import is_supported, register, vllm_version
from vllm_redknot.settings import BACKEND_NAME


class _Messages(logging.Handler):
    """Keeps what `register` logs: it never raises."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, and what was raised."""
        error = record.exc_info[1] if record.exc_info else None
        self.texts.append(record.getMessage() + (f" ({type(error).__name__}: {error})" if error else ""))


def probe(argument: str) -> dict[str, Any]:
    """Version, platform, whether vLLM loaded the plugin by itself, what `register` said, the state of each patch."""
    del argument
    messages = _Messages()
    logging.getLogger("vllm.redknot").addHandler(messages)
    version = vllm_version()
    # By name, as the rest of the plugin has no use for it: it is what a server calls.
    importlib.import_module("vllm.plugins").load_general_plugins()
    loaded = register.cache_info().currsize > 0
    register()
    patches = []
    if is_supported(version):
        for patch in patches_for_this_vllm():
            try:
                patches.append(
                    {"name": patch.name, "target": patch.target, "applied": is_applied(patch), "error": None}
                )
            except Exception as error:
                patches.append(
                    {"name": patch.name, "target": patch.target, "applied": False, "error": str(error)}
                )
    return {
        "vllm": version,
        "platform": _platform(),
        "loaded_by_vllm": loaded,
        "backend_registered": _backend_registered(),
        "messages": messages.texts,
        "patches": patches,
    }


def _platform() -> str:
    from vllm.platforms import current_platform

    return type(current_platform).__name__


def _backend_registered() -> bool:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return BACKEND_NAME in AttentionBackendEnum.__members__


if __name__ == "__main__":
    report_to_parent(probe)
