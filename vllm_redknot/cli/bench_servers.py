"""The servers of a measurement: what they have in common, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vllm_redknot.benchmarking.machine import has_gpu
from vllm_redknot.benchmarking.store import Side
from vllm_redknot.cli.capacity_plan import ContextPlan, Server, plan_context
from vllm_redknot.cli.configurations import Configuration
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.model_file import ModelFile
from vllm_redknot.cli.serve_flags import backend_flags
from vllm_redknot.cli.units import show_bytes
from vllm_redknot.kvcache.capacity import PageFormat

ELEMENT_BYTES: Final = 2
"""Of K and V; for the plan alone."""
REQUESTS_OF_STOCK: Final = 8
"""Longest requests of stock vLLM that the KV cache holds, unless asked otherwise."""
NOT_AS_PLANNED: Final = (
    *("--max-model-len", "--block-size", "--kv-cache-memory-bytes", "--num-gpu-blocks-override"),
    *("--dtype", "--kv-cache-dtype", "--pipeline-parallel-size", "-pp"),
)
"""Further flags of `vllm serve` with which a request takes, or finds, other memory than planned."""


@dataclass(frozen=True)
class Common:
    """Engine settings of all. `kv_bytes` is the KV cache of one GPU, None for REQUESTS_OF_STOCK."""

    context: int
    kv_bytes: int | None
    batched_tokens: int
    block_size: int
    tp_size: int = 1
    enforce_eager: bool = False
    further: tuple[str, ...] = ()


@dataclass(frozen=True)
class Servers:
    """What the servers are started with."""

    kv_bytes: int
    common_flags: tuple[str, ...]
    compared: tuple[Configuration, ...]

    @property
    def flags(self) -> dict[Side, list[str]]:
        """Flags of `vllm serve`, by side. Stock takes the attention backend that vLLM chooses."""
        flags: dict[Side, list[str]] = {"stock": list(self.common_flags)}
        for one in self.compared:
            flags[one.name] = [*backend_flags(one.section), *self.common_flags]
        return flags


def servers(compared: Sequence[Configuration], model: ModelFile, common: Common) -> Servers:
    """Stock, and REDKNOT in each configuration.

    Raises:
        CliError, HeadFitError: Head classes that cannot be served so, or a KV cache in which no longest request fits.
    """
    # Each is planned, for the plan checks; stock's figure is the same in all.
    plans = [_plan(one, model, common) for one in compared]
    kv_bytes = common.kv_bytes or REQUESTS_OF_STOCK * max(plan.stock.request_bytes for plan in plans)
    if not any(_name(flag) in NOT_AS_PLANNED for flag in common.further):
        _check_kv_bytes(kv_bytes, plans)
    flags = [
        *("--max-model-len", str(common.context), "--kv-cache-memory-bytes", str(kv_bytes)),
        *("--max-num-batched-tokens", str(common.batched_tokens), "--block-size", str(common.block_size)),
    ]
    if common.tp_size > 1:
        flags += ["--tensor-parallel-size", str(common.tp_size)]
    if common.enforce_eager:
        flags.append("--enforce-eager")
    return Servers(kv_bytes, (*flags, *common.further), tuple(compared))


def _name(flag: str) -> str:
    """Of `--kv_cache_dtype=fp8`, which vLLM takes for --kv-cache-dtype."""
    return flag.partition("=")[0].replace("_", "-")


def _check_kv_bytes(kv_bytes: int, plans: Sequence[ContextPlan]) -> None:
    """vLLM says so too, but after loading the model, and at the end of a log."""
    stock = max(plan.stock.least_kv_bytes for plan in plans)
    ours = max(plan.redknot.least_kv_bytes for plan in plans)
    least = max(stock, ours)
    if kv_bytes < least:
        raise CliError(
            f"--kv-bytes is {kv_bytes} ({show_bytes(kv_bytes)}): to serve one request of {plans[0].context} tokens,"
            f" stock vLLM needs {stock} bytes and REDKNOT {ours}: give at least {least} ({show_bytes(least)}), or a"
            " smaller --max-model-len"
        )


def _plan(configuration: Configuration, model: ModelFile, common: Common) -> ContextPlan:
    """What a longest request takes of one GPU; the plan also checks that the heads can be served."""
    server = Server(
        profile=configuration.profile,
        attention_layers=model.shape.attention_layers,
        query_heads=model.shape.num_attention_heads,
        page=PageFormat(model.shape.head_dim, ELEMENT_BYTES, common.block_size),
        # Two batches with asynchronous scheduling, which vLLM turns off on CPUs.
        in_flight_tokens=common.batched_tokens * (2 if has_gpu() else 1),
        max_groups=configuration.config.max_groups,
        tp_size=common.tp_size,
        sliding=model.sliding,
    )
    return plan_context(server, common.context)
