"""Turning reuse on in an engine's configuration."""

from __future__ import annotations

from typing import Any, Final

from vllm_redknot.settings import settings_of

CONNECTOR: Final = "SegmentReuseConnector"
CONNECTOR_MODULE: Final = "vllm_redknot.reuse.connector"
SCHEDULERS: Final = {
    False: "vllm_redknot.reuse.span_scheduler.SpanScheduler",
    True: "vllm_redknot.reuse.span_scheduler.AsyncSpanScheduler",
}
CHAT_DOCUMENTS: Final = "vllm_redknot.reuse.chat_documents.ChatDocuments"
"""What `vllm serve --middleware` needs for documents that are marked in a chat; vLLM offers no other way to add it."""


def is_ours(transfer: Any) -> bool:
    """Whether a KV-transfer configuration is the one that `configure` makes."""
    return transfer is not None and transfer.kv_connector_module_path == CONNECTOR_MODULE


LEAST_BOUNDARY: Final = "least_boundary"
"""Key of the connector's own settings: tokens per moved document that every request recomputes at least."""

LEAST_SHARE: Final = "least_share"
"""The same for blend: the least share; there only with a receipt for blend."""


def configure(vllm_config: Any, least_boundary: int = 0, least_share: float | None = None) -> None:
    """Choose the connector and the scheduler, if the settings ask for reuse. Changes nothing the second time.

    Called when a configuration is complete but for what follows from the connector, and after it has been checked.
    `least_boundary` and `least_share`: what the receipt asks for; 0 and None where none is needed.
    """
    if settings_of(vllm_config).reuse == "off":
        return
    from vllm.config import KVTransferConfig

    if not is_ours(vllm_config.kv_transfer_config):
        vllm_config.kv_transfer_config = KVTransferConfig(
            kv_connector=CONNECTOR, kv_connector_module_path=CONNECTOR_MODULE, kv_role="kv_both"
        )
    own: dict[str, Any] = {LEAST_BOUNDARY: least_boundary}
    if least_share is not None:
        own[LEAST_SHARE] = least_share
    vllm_config.kv_transfer_config.kv_connector_extra_config = own
    scheduler = vllm_config.scheduler_config
    scheduler.scheduler_cls = SCHEDULERS[bool(scheduler.async_scheduling)]
