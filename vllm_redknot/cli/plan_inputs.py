"""What a plan is about, from a model's folder, a head-class file, explicit numbers, or several of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import typer

from vllm_redknot.cli.configurations import row_schedule
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.target import Target, target_of_file, target_of_model
from vllm_redknot.cli.units import show_bytes
from vllm_redknot.config import ALL_GLOBAL, RedknotConfig
from vllm_redknot.heads.profile import HeadProfile, all_global
from vllm_redknot.rows.prefill_flops import DecoderSizes
from vllm_redknot.rows.schedule import RowSchedule, RowScheduleError

ELEMENT_BYTES: Final = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}
"""Of K and V by vLLM's --dtype; `auto` takes 16 bits for fp32 checkpoints too."""


class ShapeGiven(NamedTuple):
    """What the command line says of the model; None where it does not."""

    layers: int | None
    kv_heads: int | None
    query_heads: int | None
    head_dim: int | None


@dataclass(frozen=True)
class Subject:
    """Everything a plan needs to know of the model and its head classes."""

    origin: str
    profile: HeadProfile
    attention_layers: tuple[int, ...]
    query_heads: int
    head_dim: int
    sliding: Mapping[int, int] = field(default_factory=dict)
    max_context: int | None = None
    weight_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    layers: int | None = None
    sizes: DecoderSizes | None = None
    rows: RowSchedule | None = None


def plan_subject(model: Path | None, config: RedknotConfig, given: ShapeGiven) -> Subject:
    """What the command line is about.

    Raises CliError, HeadProfileError, RedknotConfigError, and typer.BadParameter where too little is given."""
    if model is not None:
        if any(number is not None for number in given):
            raise typer.BadParameter(
                "--layers, --kv-heads, --query-heads and --head-dim are for plans without MODEL"
            )
        return _of_model(model, config)
    if config.heads in (None, ALL_GLOBAL):
        if given.layers is None or given.kv_heads is None:
            raise typer.BadParameter("give MODEL, or --layers, --kv-heads, --query-heads and --head-dim")
        profile = all_global(tuple(range(given.layers)), given.kv_heads)
        idle = ("no --heads FILE: nothing is saved",) if config.heads is None else ()
        return _of_numbers(Target(profile, "every head global", warnings=idle), config, given)
    found = target_of_file(Path(str(config.heads)), config)
    profile = found.profile
    for name, stated, ours in (
        ("--layers", given.layers, profile.num_layers),
        ("--kv-heads", given.kv_heads, profile.num_kv_heads),
    ):
        if stated not in (None, ours):
            raise CliError(f"{name} is {stated}, and {config.heads} is for {profile.shape}: make them agree")
    return _of_numbers(found, config, given)


def _of_model(folder: Path, config: RedknotConfig) -> Subject:
    found = target_of_model(folder, config)
    model = found.model
    assert model is not None
    shape = model.shape
    sizes = model.ffn_size and DecoderSizes(shape.num_layers, shape.hidden_size, model.ffn_size)
    return Subject(
        origin=f"{folder} with {found.origin}",
        profile=found.profile,
        attention_layers=shape.attention_layers,
        query_heads=shape.num_attention_heads,
        head_dim=shape.head_dim,
        sliding=model.sliding,
        max_context=model.max_context,
        weight_bytes=model.weight_bytes,
        warnings=found.warnings,
        layers=shape.num_layers,
        sizes=sizes or None,
        rows=row_schedule(found, config),
    )


def _of_numbers(target: Target, config: RedknotConfig, given: ShapeGiven) -> Subject:
    profile, origin, identity = target.profile, target.origin, target.profile.identity
    query_heads = given.query_heads or (identity.num_attention_heads if identity else None)
    head_dim = given.head_dim or (identity.head_dim if identity else None)
    if query_heads is None or head_dim is None:
        missing = "number of query heads" if query_heads is None else "head size"
        option = "--query-heads" if query_heads is None else "--head-dim"
        raise typer.BadParameter(
            f"nothing says the {missing} ({origin}): give {option}, or the model's folder"
        )
    layers = (identity.num_layers if identity else None) or profile.layer_ids[-1] + 1
    rows = row_schedule(target, config)
    try:
        if rows is not None:
            rows.check_model(layers, identity.hidden_size if identity else None)
    except RowScheduleError as error:
        raise CliError(str(error)) from error
    sizes = None
    if identity and identity.hidden_size and identity.intermediate_size:
        sizes = DecoderSizes(layers, identity.hidden_size, identity.intermediate_size)
    return Subject(
        origin,
        profile,
        profile.layer_ids,
        query_heads,
        head_dim,
        warnings=target.warnings,
        layers=layers,
        sizes=sizes,
        rows=rows,
    )


def kv_bytes_per_rank(
    subject: Subject, gpu_memory: int, utilization: float, weights: int | None, reserve: int, tp_size: int
) -> int:
    """What weights and activations leave of a GPU. Raises CliError where that is nothing, or weights are unknown."""
    total = weights if weights is not None else subject.weight_bytes
    if total is None:
        raise typer.BadParameter(f"the weights of {subject.origin} are unknown: give --weights or --kv-bytes")
    left = int(gpu_memory * utilization) - total // tp_size - reserve
    if left <= 0:
        raise CliError(
            f"{show_bytes(total / tp_size)} of weights and {show_bytes(reserve)} of reserve leave no KV memory in"
            f" {show_bytes(gpu_memory * utilization)}: raise --tp or --gpu-memory"
        )
    return left
