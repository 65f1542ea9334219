"""What `redknot doctor` finds out. What may crash or print, vLLM and compiled kernels, runs in a process of its own."""
