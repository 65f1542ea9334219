"""Makes the layers of a freshly built model skip rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention

from vllm_redknot.rows.compiled import hide_attention, hide_ffn
from vllm_redknot.rows.counters import ATTENTION, FFN
from vllm_redknot.rows.layers import LateAttention, SkippingFfn
from vllm_redknot.rows.rules import ffn_rule
from vllm_redknot.rows.structure import decoder_layers

if TYPE_CHECKING:
    from vllm_redknot.rows.skipping import RowSkipping

logger = init_logger("vllm.redknot")


def install_rows(model: nn.Module) -> None:
    """Change the layers that skip. Does nothing to a model without row skipping, or a second time.

    Must run after the weights are loaded and before they are packed.

    Raises:
        RowStructureError: The model's layers are not built as row skipping needs them.
    """
    from vllm_redknot.attention.impl import RedknotImpl

    impls = (module.impl for module in model.modules() if isinstance(module, Attention))
    rows: RowSkipping | None = next((i.model.rows for i in impls if isinstance(i, RedknotImpl)), None)
    if rows is None or rows.installed:
        return
    schedule = rows.schedule
    for layer in decoder_layers(model, RedknotImpl):
        rows.layers[ATTENTION][layer.index] = schedule.skips_attention(layer.index)
        if schedule.skips_attention(layer.index):
            LateAttention(layer)
            if rows.is_compiled:
                hide_attention(layer)
        rule = ffn_rule(schedule, layer.index)
        if schedule.skips_ffn(layer.index) or rule is not None:
            SkippingFfn(layer, rule, rows.counters)
            if rows.is_compiled:
                hide_ffn(layer)
        if rule is None:
            rows.layers[FFN][layer.index] = schedule.skips_ffn(layer.index)
    rows.installed = True
    logger.info_once("REDKNOT: %s", schedule.describe())
