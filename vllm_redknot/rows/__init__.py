"""Row skipping in prefill: prompt tokens skip the feed-forward network, and in late layers the attention.

`schedule` says which layers skip what, `plan` which rows of one engine step, `layers` does it inside vLLM's own
decoder layers, `prefix_cache` keeps KV of different schedules apart.
"""
