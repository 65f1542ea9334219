"""A plan as one JSON document. Bytes, tokens and FLOPs are of one GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vllm_redknot.cli.capacity_plan import ContextPlan, Cost, Server
from vllm_redknot.cli.plan_inputs import Subject
from vllm_redknot.heads.profile import HeadClass
from vllm_redknot.rows.prefill_flops import PrefillWork


def plan_document(server: Server, subject: Subject, plans: Sequence[ContextPlan]) -> dict[str, Any]:
    """Everything the tables show, unrounded."""
    counts = server.profile.counts()
    return {
        "origin": subject.origin,
        "attention_layers": len(server.attention_layers),
        "num_kv_heads": server.profile.num_kv_heads,
        "num_attention_heads": server.query_heads,
        "head_dim": server.page.head_size,
        "counts": {cls.value: counts[cls] for cls in HeadClass},
        "sliding_window_layers": sorted(server.sliding),
        "tensor_parallel_size": server.tp_size,
        "block_size": server.page.block_size,
        "element_bytes": server.page.element_bytes,
        "in_flight_tokens": server.in_flight_tokens,
        "max_groups": server.max_groups,
        "kv_cache_memory_bytes": server.kv_bytes,
        "row_schedule": None if server.rows is None else server.rows.to_section(),
        "warnings": list(subject.warnings),
        "contexts": [
            {
                "context": plan.context,
                "kept_share": plan.kept_share,
                "redknot": _cost(plan.redknot),
                "stock": _cost(plan.stock),
                "rows_skipped": None if plan.rows is None else asdict(plan.rows),
                "prefill_flops_with_rows": _prefill(plan.prefill_with_rows),
            }
            for plan in plans
        ],
    }


def _cost(cost: Cost) -> dict[str, Any]:
    values = asdict(cost)
    work = values.pop("work")
    del values["prefill"]
    return {
        **values,
        "prefill_attention_flops": work["prefill"],
        "decode_attention_flops": work["decode"],
        "prefill_flops": _prefill(cost.prefill),
    }


def _prefill(work: PrefillWork | None) -> dict[str, int] | None:
    return None if work is None else {**asdict(work), "total": work.total}
