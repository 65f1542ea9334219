"""Which CUDA graphs a model has whose prompt tokens skip rows."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger

from vllm_redknot.settings import settings_of

logger = init_logger("vllm.redknot")


def leave_graphs_to_decode(vllm_config: Any) -> None:
    """Capture decode steps whole, which skip nothing, and no others: which rows a prefill step computes is its own.

    A graph of a piece between attention layers would hold a late layer's attention, which is no place to cut.
    """
    from vllm.config import CUDAGraphMode

    compilation = vllm_config.compilation_config
    before = compilation.cudagraph_mode
    if not before:
        return
    after = CUDAGraphMode.FULL_DECODE_ONLY if before.has_full_cudagraphs() else CUDAGraphMode.NONE
    if settings_of(vllm_config).decode_kernel == "flashinfer":
        # It cannot be captured, and vLLM would capture pieces instead.
        after = CUDAGraphMode.NONE
    if after != before:
        logger.info_once("REDKNOT: row skipping: cudagraph_mode is %s instead of %s", after.name, before.name)
        compilation.cudagraph_mode = after
