"""Position-independent KV reuse: stored segments, finding them in a prompt, and moving them to their place."""
