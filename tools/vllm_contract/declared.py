"""What cannot be read off our source: which vLLM class a parameter without a type holds, and which names are ours."""

from __future__ import annotations

RECEIVERS = {
    "vllm_config": "vllm.config.vllm:VllmConfig",
    "model_config": "vllm.config.model:ModelConfig",
    "common": "vllm.v1.attention.backend:CommonAttentionMetadata",
    "attn_selector_config": "vllm.v1.attention.selector:AttentionSelectorConfig",
    "selected_backend": "vllm.v1.attention.backends.registry:AttentionBackendEnum",
    "parent": "vllm.model_executor.layers.attention:Attention",
}
"""Names of parameters -> the class of what vLLM hands over."""

OURS = {
    "RedknotImpl.bind": "called by our own model state",
    "KeyValueMethod.project_key_value": "what the subclass adds",
    "SinkWindowSpec.num_sink_tokens": "what the subclass adds",
    "SinkWindowSpec.num_sink_blocks": "what the subclass adds",
    "SinkWindowSpec.num_retained_tokens": "only vLLM 0.33 reads it",
    "SegmentReuseConnector.request_finished_all_groups": "of SupportsHMA, which it is registered as",
    "SegmentReuseConnector.store": "read by our own `redknot store add`",
    "ReuseMetadata.lookups": "a field of our message",
    "ReuseMetadata.drops": "a field of our message",
    "ReuseMetadata.loads": "a field of our message",
    "ReuseMetadata.gathers": "a field of our message",
    "ReuseMetadata.releases": "a field of our message",
    "ReuseReport.found": "a field of our message",
    "ReuseReport.broken": "a field of our message",
    "ReuseReport.stored": "a field of our message",
    "ReuseReport.failed": "a field of our message",
}
"""Public names of our subclasses that their vLLM bases need not have."""

PYTHON_ATTRIBUTES = {
    "name",
    "value",
    "_asdict",
    "_replace",
    "__name__",
    "__dict__",
    "__members__",
    "__init__",
}
"""What enums, named tuples and classes have from Python."""

REQUIRED = {
    "vllm.model_executor.layers.attention:Attention.impl": "an implementation finds its layer by it",
    "vllm.model_executor.layers.attention:Attention.attn_backend": "segments report their layer's",
    "vllm.model_executor.layers.attention:Attention.get_kv_cache_spec": "replaced on each segmented layer",
    "vllm.model_executor.layers.attention:Attention.kv_cache": "the pages of KV head 0",
    "vllm.model_executor.layers.attention_layer_base:AttentionLayerBase.bind_kv_cache": "sets the other heads' pages",
    "vllm.config.model_arch:ModelArchitectureConfig.total_num_attention_heads": "part of the model's shape",
    "vllm.platforms.interface:Platform.is_cpu": "decides whether the CPU patch is needed",
}
"""Attributes read off values whose type the source does not tell -> why."""
