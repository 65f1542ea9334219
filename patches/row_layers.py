"""Let row skipping change a model's layers before their weights are packed.

What: `process_weights_after_loading`, as model loaders call it, first hands the model to row skipping.
Why: vLLM offers no hook between building a model and packing its weights that sees the whole model.
Applied only in a process whose model skips rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from vllm_redknot.patches.ledger import Patch


def wrap(original: Callable[..., None]) -> Callable[..., None]:
    """Row skipping, then the original."""

    @functools.wraps(original)
    def process_weights_after_loading(model: Any, model_config: Any, target_device: Any) -> None:
        from vllm_redknot.rows.install import install_rows

        install_rows(model)
        original(model, model_config, target_device)

    return process_weights_after_loading


PATCH = Patch(
    name="row_layers",
    module="vllm.model_executor.model_loader.base_loader",
    symbol="process_weights_after_loading",
    parameters=("model", "model_config", "target_device"),
    wrap=wrap,
    why="no hook sees the whole model before its weights are packed",
    versions="0.32, 0.33",
    upstream="none",
    removable_when="vLLM calls plugins with a model it has built",
)
