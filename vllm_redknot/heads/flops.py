"""Attention arithmetic of a head profile: pairs of query and key, times the work on one pair.

A query head spends 4 * head_dim FLOPs on a visible pair: a multiply and an add per element for q.k, and for the
weighted sum of values. The softmax is left out. Query heads that share a KV head each count.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_redknot.heads.profile import HeadProfile, HeadVisibility


@dataclass(frozen=True)
class AttentionWork:
    """FLOPs of all heads of a profile: the prefill of a whole context, and the one next token after it."""

    prefill: int
    decode: int


def visible_pairs(seen: HeadVisibility, tokens: int) -> int:
    """Sum over queries i < `tokens` of the keys j <= i with i - j < window or j < sink."""
    window = tokens if seen.window is None else min(seen.window, tokens)
    beyond = tokens - window
    growing = min(beyond, seen.sink)
    in_window = window * (window + 1) // 2 + beyond * window
    in_sink = growing * (growing + 1) // 2 + (beyond - growing) * growing
    return in_window + in_sink


def visible_keys(seen: HeadVisibility, tokens: int) -> int:
    """Keys the last of `tokens` tokens sees, itself included."""
    window = tokens if seen.window is None else min(seen.window, tokens)
    return window + min(seen.sink, tokens - window)


def attention_work(profile: HeadProfile, query_heads: int, head_dim: int, context: int) -> AttentionWork:
    """FLOPs at a context of so many tokens. `query_heads` is a multiple of the profile's KV heads."""
    each = 4 * head_dim * (query_heads // profile.num_kv_heads)
    return AttentionWork(
        prefill=each * sum(heads * visible_pairs(seen, context) for seen, heads in profile.seen.items()),
        decode=each * sum(heads * visible_keys(seen, context) for seen, heads in profile.seen.items()),
    )
