"""Whether a vLLM release has what the plugin touches, told from its source text: nothing of it is imported."""
