"""The two servers of a measurement: what they have in common, and what differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vllm_redknot.benchmarking.store import Side
from vllm_redknot.cli.capacity_plan import Server, plan_context
from vllm_redknot.cli.model_file import ModelFile
from vllm_redknot.cli.serve_flags import backend_flags, redknot_section
from vllm_redknot.cli.target import Target
from vllm_redknot.config import RedknotConfig
from vllm_redknot.kvcache.capacity import PageFormat

ELEMENT_BYTES: Final = 2
"""Of K and V; for the plan alone."""
REQUESTS_OF_STOCK: Final = 8
"""Longest requests of stock vLLM that the KV cache holds, unless asked otherwise."""


@dataclass(frozen=True)
class Common:
    """Engine settings of both. `kv_bytes` is the KV cache of one GPU, None for REQUESTS_OF_STOCK."""

    context: int
    kv_bytes: int | None
    batched_tokens: int
    block_size: int
    tp_size: int = 1
    enforce_eager: bool = False
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class Servers:
    """What both servers are started with."""

    kv_bytes: int
    common_flags: tuple[str, ...]
    redknot_settings: dict[str, Any]

    @property
    def flags(self) -> dict[Side, list[str]]:
        """Flags of `vllm serve`, by side. Stock takes the attention backend that vLLM chooses."""
        common = list(self.common_flags)
        return {"stock": common, "redknot": [*backend_flags(self.redknot_settings), *common]}


def servers(target: Target, model: ModelFile, config: RedknotConfig, common: Common) -> Servers:
    """Raises CliError or HeadFitError where the head classes cannot be served so."""
    longest = _stock_request_bytes(target, model, config, common)
    kv_bytes = common.kv_bytes or REQUESTS_OF_STOCK * longest
    flags = [
        *("--max-model-len", str(common.context), "--kv-cache-memory-bytes", str(kv_bytes)),
        *("--max-num-batched-tokens", str(common.batched_tokens), "--block-size", str(common.block_size)),
    ]
    if common.tp_size > 1:
        flags += ["--tensor-parallel-size", str(common.tp_size)]
    if common.enforce_eager:
        flags.append("--enforce-eager")
    return Servers(kv_bytes, (*flags, *common.further), redknot_section(config, given=()))


def _stock_request_bytes(target: Target, model: ModelFile, config: RedknotConfig, common: Common) -> int:
    """KV bytes of a longest request of one GPU; the plan also checks that the heads can be served."""
    server = Server(
        profile=target.profile,
        attention_layers=model.shape.attention_layers,
        query_heads=model.shape.num_attention_heads,
        page=PageFormat(model.shape.head_dim, ELEMENT_BYTES, common.block_size),
        in_flight_tokens=common.batched_tokens,
        max_groups=config.max_groups,
        tp_size=common.tp_size,
        sliding=model.sliding,
    )
    return plan_context(server, common.context).stock.request_bytes
