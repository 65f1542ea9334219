"""Let the CPU platform use the REDKNOT backend when it is asked for.

What: `CpuPlatform.get_attn_backend_cls` returns REDKNOT's class for decoder attention if REDKNOT is selected.
Why: the method ignores its `selected_backend` and always answers CPU_ATTN. CUDA honours it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from vllm_redknot.patches.ledger import Patch

logger = logging.getLogger("vllm.redknot")


def wrap(original: Callable[..., str]) -> Callable[..., str]:
    """The original, asked only where REDKNOT is not selected or cannot serve the layer's kind."""

    @functools.wraps(original)
    def get_attn_backend_cls(
        cls: type, selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> str:
        if getattr(selected_backend, "name", None) != "REDKNOT":
            return original(cls, selected_backend, attn_selector_config, num_heads)
        from vllm.platforms.interface import DeviceCapability
        from vllm.v1.attention.backend import AttentionType

        if attn_selector_config.use_mla or attn_selector_config.attn_type != AttentionType.DECODER:
            kind = "MLA" if attn_selector_config.use_mla else attn_selector_config.attn_type
            logger.warning("REDKNOT does not serve %s attention layers: they use vLLM's own backend", kind)
            return original(cls, None, attn_selector_config, num_heads)
        reasons = selected_backend.get_class().validate_configuration(
            device_capability=DeviceCapability(0, 0), **attn_selector_config._asdict()
        )
        if reasons:
            raise ValueError(f"REDKNOT cannot serve this configuration: {'; '.join(reasons)}")
        path: str = selected_backend.get_path()
        return path

    return get_attn_backend_cls


PATCH = Patch(
    name="cpu_backend_choice",
    module="vllm.platforms.cpu",
    symbol="CpuPlatform.get_attn_backend_cls",
    parameters=("cls", "selected_backend", "attn_selector_config", "num_heads"),
    wrap=wrap,
    why="the CPU platform ignores --attention-backend",
    versions="0.32, 0.33",
    upstream="none",
    removable_when="CpuPlatform honours selected_backend as CudaPlatform does",
)
