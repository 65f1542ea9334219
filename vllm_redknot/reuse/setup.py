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


def is_ours(transfer: Any) -> bool:
    """Whether a KV-transfer configuration is the one that `configure` makes."""
    return transfer is not None and transfer.kv_connector_module_path == CONNECTOR_MODULE


def configure(vllm_config: Any) -> None:
    """Choose the connector and the scheduler, if the settings ask for reuse. Changes nothing the second time.

    Called when a configuration is complete but for what follows from the connector, and after it has been checked.
    """
    if settings_of(vllm_config).reuse == "off":
        return
    from vllm.config import KVTransferConfig

    if not is_ours(vllm_config.kv_transfer_config):
        vllm_config.kv_transfer_config = KVTransferConfig(
            kv_connector=CONNECTOR, kv_connector_module_path=CONNECTOR_MODULE, kv_role="kv_both"
        )
    scheduler = vllm_config.scheduler_config
    scheduler.scheduler_cls = SCHEDULERS[bool(scheduler.async_scheduling)]
