"""Makes REDKNOT a valid name for --attention-backend, in this process and in those its configuration is sent to."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_redknot.settings import BACKEND_NAME

CLASS_PATH = "vllm_redknot.attention.backend.RedknotBackend"


def register_backend() -> AttentionBackendEnum:
    """Add the enum member, once per process.

    vLLM pickles its configuration to processes in which plugins are not loaded yet, so the member unpickles through
    `registered_member`, which loads this plugin first.
    """
    members = AttentionBackendEnum.__members__
    member = members.get(BACKEND_NAME) or AttentionBackendEnum.register(BACKEND_NAME, CLASS_PATH)
    member.__dict__["__reduce_ex__"] = _reduce
    return member


def registered_member() -> AttentionBackendEnum:
    """The enum member in this process, registered if need be.

    Raises:
        ValueError: The plugin could not be registered here.
    """
    if BACKEND_NAME not in AttentionBackendEnum.__members__:
        from vllm_redknot.plugin import register

        register()
    return AttentionBackendEnum[BACKEND_NAME]


def _reduce(protocol: Any) -> tuple[Any, tuple[()]]:
    del protocol
    return registered_member, ()
