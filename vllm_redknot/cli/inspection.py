"""What `redknot inspect` reports, as one JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from vllm_redknot.cli.capacity_plan import effective_profile
from vllm_redknot.cli.target import Target
from vllm_redknot.heads.profile import HeadClass, HeadKind, HeadProfile
from vllm_redknot.kvcache.capacity import PageFormat, Workload, capacity

BLOCK_SIZE = 16
BATCHES = 2
"""Batches in flight with asynchronous scheduling, vLLM's default."""


def inspection(
    target: Target, contexts: Sequence[int], batched_tokens: int, element_bytes: int
) -> dict[str, Any]:
    """The document; matrices are [layers][KV heads], sizes in tokens and bytes."""
    profile = target.profile
    identity, provenance = profile.identity, profile.provenance
    return {
        "origin": target.origin,
        "why": list(target.reasons),
        "format": profile.source_format,
        "head_kind": profile.kind.value,
        "num_layers": profile.num_layers,
        "num_kv_heads": profile.num_kv_heads,
        "layer_ids": list(profile.layer_ids),
        "dense_prefix_layers": profile.dense_prefix_layers,
        "counts": {cls.value: profile.counts()[cls] for cls in HeadClass},
        "local_kinds": local_kinds(profile),
        "identity": None if identity is None else identity.model_dump(exclude_none=True),
        "provenance": None if provenance is None else provenance.model_dump(exclude_none=True),
        "sections": sorted(profile.sections),
        "fingerprint": profile.fingerprint(),
        "model": _model(target),
        "savings": savings(target, contexts, batched_tokens, element_bytes),
        "warnings": list(target.warnings),
        "classes": [
            [profile.head_class(layer, head).value for head in range(profile.num_kv_heads)]
            for layer in profile.layer_ids
        ],
        "window": [
            [profile.visibility(layer, head).window for head in range(profile.num_kv_heads)]
            for layer in profile.layer_ids
        ],
        "sink": [list(row) for row in profile.sink],
    }


def local_kinds(profile: HeadProfile) -> list[dict[str, int]]:
    """Windows and sinks in use by local heads, by rising window."""
    counts = Counter(
        profile.visibility(layer, head)
        for layer in profile.layer_ids
        for head in range(profile.num_kv_heads)
        if profile.head_class(layer, head) is HeadClass.LOCAL
    )
    return [
        {"window": seen.window or 0, "sink": seen.sink, "heads": count}
        for seen, count in sorted(counts.items())
    ]


def savings(
    target: Target, contexts: Sequence[int], batched_tokens: int, element_bytes: int
) -> list[dict[str, Any]]:
    """KV of a longest request by the closed form; bytes where the head size is known. Nothing for MLA."""
    profile = target.profile
    if profile.kind is not HeadKind.KV:
        return []
    head_dim = profile.identity.head_dim if profile.identity else None
    if target.model:
        head_dim = target.model.shape.head_dim
        profile = effective_profile(profile, target.model.shape.attention_layers, target.model.sliding)
    page = PageFormat(head_dim or 1, element_bytes, BLOCK_SIZE)
    rows = []
    for context in contexts:
        found = capacity(profile, page, Workload(context, BATCHES * batched_tokens))
        rows.append(
            {
                "context": context,
                "kept_share": round(found.kept_share, 6),
                "request_bytes": found.request_bytes if head_dim else None,
                "dense_request_bytes": found.dense_request_bytes if head_dim else None,
            }
        )
    return rows


def _model(target: Target) -> dict[str, Any] | None:
    if target.model is None:
        return None
    shape = target.model.shape
    return {
        "folder": str(target.model.path),
        **shape.identity().model_dump(exclude_none=True),
        "max_context": target.model.max_context,
        "sliding_window_layers": sorted(target.model.sliding),
        "not_served": list(target.model.refused),
    }
