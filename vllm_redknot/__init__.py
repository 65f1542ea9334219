"""vllm-redknot: head-segmented paged KV cache and attention for stock vLLM."""

__version__ = "0.1.0"
