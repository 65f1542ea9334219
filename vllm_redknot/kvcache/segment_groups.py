"""From the KV-cache specs that head segments report to vLLM's KV-cache groups."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from vllm.logger import init_logger
from vllm.utils.math_utils import cdiv
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVCacheSpec,
)

from vllm_redknot.kvcache.grouping import GroupPlan, Kept, plan_groups
from vllm_redknot.kvcache.spec import SinkWindowSpec
from vllm_redknot.settings import is_requested, settings_of

logger = init_logger("vllm.redknot")


def group_segments(vllm_config: Any, specs: dict[str, KVCacheSpec]) -> list[KVCacheGroupSpec] | None:
    """vLLM's groups by REDKNOT's plan, or None where the layers are not head segments of one page format.

    Args:
        vllm_config: the engine's configuration.
        specs: KV-cache layer name -> its spec, of all workers.

    Raises:
        ValueError: local heads, but vLLM's hybrid KV-cache manager is turned off, or a KV connector that drops sinks.
    """
    # The specs first: where no head is local, the engine's configuration is not even looked at.
    if not any(isinstance(spec, SinkWindowSpec) for spec in specs.values()) or not is_requested(vllm_config):
        return None
    if vllm_config.scheduler_config.disable_hybrid_kv_cache_manager:
        raise ValueError(
            "REDKNOT stores local heads through vLLM's hybrid KV-cache manager, which is turned off (by"
            ' --disable-hybrid-kv-cache-manager or a KV connector without SupportsHMA). Turn it on, or use "heads":'
            ' "all-global".'
        )
    _refuse_other_connectors(vllm_config)
    if len({_page_format(spec) for spec in specs.values()}) != 1:
        logger.warning(
            "REDKNOT: KV-cache layers of different page formats; vLLM's own grouping serves this model"
        )
        return None
    dense_blocks = cdiv(vllm_config.model_config.max_model_len, next(iter(specs.values())).block_size)
    blocks = {name: _kept(vllm_config, spec, dense_blocks) for name, spec in specs.items()}
    plan = plan_groups(blocks, dense_blocks, settings_of(vllm_config).max_groups)
    _log(vllm_config, plan, specs)
    return [
        KVCacheGroupSpec(list(names), _merged(vllm_config, [specs[name] for name in names], dense_blocks))
        for names in plan.groups
    ]


def _refuse_other_connectors(vllm_config: Any) -> None:
    """vLLM's connectors take a local head for a sliding window: they would move its window and leave out its sinks."""
    transfer = getattr(vllm_config, "kv_transfer_config", None)
    if transfer is None or (transfer.kv_connector_module_path or "").split(".")[0] == "vllm_redknot":
        return
    raise ValueError(
        f"KV connector {transfer.kv_connector!r} does not keep the sink tokens of local heads. Serve without it, or"
        ' use "heads": "all-global".'
    )


def _page_format(spec: KVCacheSpec) -> tuple[Any, ...] | None:
    """What two segments must share to live in one pool; None for what is not a head segment."""
    if type(spec) not in (FullAttentionSpec, SinkWindowSpec):
        return None
    assert isinstance(spec, AttentionSpec)
    return tuple(getattr(spec, field.name) for field in fields(AttentionSpec))


def _blocks_per_request(vllm_config: Any, spec: KVCacheSpec) -> int:
    return int(cdiv(spec.max_memory_usage_bytes(vllm_config), spec.page_size_bytes))


def _kept(vllm_config: Any, spec: KVCacheSpec, dense_blocks: int) -> Kept:
    total = _blocks_per_request(vllm_config, spec)
    if total >= dense_blocks or not isinstance(spec, SinkWindowSpec):
        return Kept(dense_blocks)
    return Kept(total - spec.num_sink_blocks, spec.num_sink_blocks)


def _merged(vllm_config: Any, specs: list[KVCacheSpec], dense_blocks: int) -> KVCacheSpec:
    """The spec that keeps what any member needs: the largest window and the most sinks, or all tokens."""
    if all(isinstance(spec, SinkWindowSpec) for spec in specs):
        merged = SinkWindowSpec.merge(specs)
        if _blocks_per_request(vllm_config, merged) < dense_blocks:
            return merged
    first = specs[0]
    shared = {field.name: getattr(first, field.name) for field in fields(AttentionSpec) if field.init}
    return FullAttentionSpec(**shared)


def _log(vllm_config: Any, plan: GroupPlan, specs: dict[str, KVCacheSpec]) -> None:
    page = next(iter(specs.values())).page_size_bytes
    logger.info(
        "REDKNOT: %d head segments in %d KV-cache groups of %d (%d padding slots, %d segments stored longer than they"
        " need); a request of %d tokens holds at most %.1f MiB of KV instead of %.1f MiB (%.1f%%)",
        len(specs),
        len(plan.groups),
        plan.slots,
        plan.padding,
        plan.promoted,
        vllm_config.model_config.max_model_len,
        plan.pages_per_request * page / 2**20,
        plan.dense_pages_per_request * page / 2**20,
        100 * plan.kept_share,
    )
