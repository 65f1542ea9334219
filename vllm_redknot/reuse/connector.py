"""vLLM's KV connector for reuse: carries messages between the scheduler's tracker and the worker."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.logger import init_logger

from vllm_redknot.reuse.messages import ReuseMetadata, ReuseReport
from vllm_redknot.reuse.metrics import Changes, ReuseMetrics, ReuseStats
from vllm_redknot.reuse.opening import open_store
from vllm_redknot.reuse.permitted import Permitted
from vllm_redknot.reuse.policy import BLEND
from vllm_redknot.reuse.setup import LEAST_BOUNDARY, LEAST_SHARE
from vllm_redknot.reuse.store import SegmentStore
from vllm_redknot.reuse.tracker import Tracker
from vllm_redknot.reuse.worker import ReuseWorker
from vllm_redknot.rows.requests import OFF_KEY, skips_rows
from vllm_redknot.settings import settings_of
from vllm_redknot.support import resolve_model_rows

logger = init_logger("vllm.redknot")

RESPONSE_KEY = "redknot_reuse"
ROWS_OFF = (
    f'{OFF_KEY} is "off" in this request, and what is stored is KV of prompts that skip rows: nothing is reused or'
    " stored"
)


class SegmentReuseConnector(KVConnectorBase_V1):
    """One in the scheduler, one in the worker."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        settings = settings_of(vllm_config)
        self._settings = settings
        self._worker: ReuseWorker | None = None
        self._changes = Changes()
        if role == KVConnectorRole.SCHEDULER:
            self._skips_rows = resolve_model_rows(vllm_config) is not None
            own = vllm_config.kv_transfer_config.kv_connector_extra_config
            permitted = Permitted(
                boundary=settings.boundary,
                least_boundary=own.get(LEAST_BOUNDARY, 0),
                share=settings.share if settings.policy == BLEND else None,
                least_share=own.get(LEAST_SHARE),
            )
            self.tracker = Tracker(permitted, settings.capture, settings.min_reuse)

    @property
    def store(self) -> SegmentStore:
        """The worker's store. Raises RuntimeError on the scheduler's side, and before the model is loaded."""
        if self._worker is None:
            raise RuntimeError("the segment store is open in the worker, while it runs")
        return self._worker.store

    # Metrics.

    def get_kv_connector_stats(self) -> ReuseStats | None:
        """What this side has counted since the last step."""
        if self._role == KVConnectorRole.SCHEDULER:
            return self._changes.since_last(self.tracker.totals.numbers())
        return None if self._worker is None else self._worker.stats()

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ReuseStats:
        """Stats that have travelled as their `data`."""
        return ReuseStats(data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> ReuseMetrics:
        """The metrics of the API server."""
        return ReuseMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @property
    def requires_kv_delivery(self) -> bool:
        """Nothing is handed to another engine: a preempted request may finish."""
        return False

    # Worker.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The model is loaded and has its pages: check that its keys can be moved, and open the store."""
        del kv_caches
        self._worker = ReuseWorker(
            self._vllm_config, self._kv_cache_config, lambda scope: open_store(scope, self._settings)
        )

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """A step begins."""
        super().bind_connector_metadata(connector_metadata)
        if self._worker is not None:
            self._worker.begin(self._message())

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write spans; before the forward pass where there are any."""
        del kwargs
        if self._worker is not None:
            self._worker.load(self._message(), forward_context.attn_metadata)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are complete before the forward pass."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Documents are read after the forward pass."""

    def wait_for_save(self) -> None:
        """Read documents; end leases."""
        if self._worker is not None:
            self._worker.end(self._message())

    def build_connector_worker_meta(self) -> ReuseReport | None:
        """What the scheduler must know."""
        return None if self._worker is None else self._worker.report()

    def shutdown(self) -> None:
        """The engine ends."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _message(self) -> ReuseMetadata:
        message = self._get_connector_metadata()
        assert isinstance(message, ReuseMetadata)
        return message

    # Scheduler.

    def on_new_request(self, request: Any) -> None:
        """Ask the worker what is stored of its prompt."""
        refused = ROWS_OFF if self._skips_rows and not skips_rows(request.sampling_params) else ""
        self.tracker.add(request, is_eligible(request), refused)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """A span right behind the prefix-cache hit; None while the worker is looking."""
        if not self.tracker.ready(request.request_id):
            return None, False
        return self.tracker.matched(request.request_id, num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """The span has pages."""
        del blocks
        self.tracker.admitted(request.request_id, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> ReuseMetadata:
        """The step's messages."""
        manager = self._kv_cache_manager
        assert manager is not None
        return self.tracker.metadata(scheduler_output.num_scheduled_tokens, manager.get_block_ids)

    def update_connector_output(self, connector_output: Any) -> None:
        """The worker's messages."""
        report = connector_output.kv_connector_worker_meta
        if report is not None:
            self.tracker.receive(report)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """See `request_finished_all_groups`."""
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Nothing keeps the request's pages; its response says what was reused."""
        del block_ids
        return False, {RESPONSE_KEY: self.tracker.finished(request.request_id)}

    def reset_cache(self) -> bool:
        """Asked for when weights change in place: stored KV is of the old ones, so none is used any more."""
        logger.warning(
            "REDKNOT: the KV connector was reset; no KV is reused or stored until the engine restarts"
        )
        self.tracker.is_on = False
        return True


# It has the one method that vLLM asks of connectors where heads have pages of different life spans.
SupportsHMA.register(SegmentReuseConnector)


def is_eligible(request: Any) -> bool:
    """Whether a request's KV follows from its token ids alone, and may be shared."""
    return not (
        request.lora_request is not None
        or request.mm_features
        or request.prompt_embeds is not None
        or request.prompt_token_ids is None
        or request.pooling_params is not None
        or request.resumable
        # Prompt logprobs need every token computed; a salt asks for KV of its own.
        or request.skip_reading_prefix_cache
        or request.cache_salt is not None
    )
