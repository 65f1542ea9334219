"""What the KV of this engine's worker depends on: the scope of its segment store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_redknot.heads.profile import HeadProfile, HeadVisibility
from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.fingerprint import Fingerprint, canonical, config_digest, weights_digest
from vllm_redknot.reuse.format import SegmentFormat
from vllm_redknot.reuse.scope import Scope
from vllm_redknot.rows.schedule import RowSchedule


def fingerprint_of(vllm_config: Any, profile: HeadProfile, rows: RowSchedule | None) -> Fingerprint:
    """All but the tokens and the layout that a model's KV depends on, for a model as it runs.

    Args:
        vllm_config: the engine's configuration.
        profile: the head profile of all ranks.
        rows: what prompt tokens skip, whether the settings or the head file say so; None: nothing.

    Raises:
        ReuseError: The checkpoint is no local folder of safetensors files.
    """
    model = vllm_config.model_config
    folder = Path(model.model)
    if not folder.is_dir() or vllm_config.load_config.load_format == "dummy":
        raise ReuseError(
            f"KV reuse tells models apart by their weights, and {model.model} is no folder of weights that are"
            " used: give --model the path of a local checkpoint"
        )
    text = model.hf_text_config
    return Fingerprint(
        weights=weights_digest(folder),
        config=config_digest(_plain(text.to_dict())),
        dtype=str(model.dtype).removeprefix("torch."),
        rope=canonical({"rope": _plain(getattr(text, "rope_parameters", None) or {})}),
        heads=profile.fingerprint(),
        rows="" if rows is None else rows.digest(),
        tp_rank=0,
        tp_size=vllm_config.parallel_config.tensor_parallel_size,
        model=folder.name,
    )


def scope_of(
    vllm_config: Any,
    profile: HeadProfile,
    rows: RowSchedule | None,
    layer_ids: Sequence[int],
    visibilities: Sequence[Sequence[HeadVisibility]],
    kv_dtype: str,
    slack: int = 0,
) -> Scope:
    """The scope for a model as it runs.

    Args:
        vllm_config: the engine's configuration.
        profile: the head profile of all ranks.
        rows: what prompt tokens skip; None: nothing.
        layer_ids: attention layers, increasing.
        visibilities: per layer, what each KV head of the rank sees, layers' own windows included.
        kv_dtype: of keys and values, such as "bfloat16".
        slack: tokens that local heads keep beyond their window.

    Raises:
        ReuseError: The checkpoint is no local folder of safetensors files.
    """
    layout = SegmentFormat(
        layer_ids=tuple(layer_ids),
        head_size=vllm_config.model_config.get_head_size(),
        dtype=kv_dtype,
        window=tuple(tuple(seen.window for seen in row) for row in visibilities),
        sink=tuple(
            tuple(seen.sink if seen.window is not None else 0 for seen in row) for row in visibilities
        ),
        slack=slack if any(seen.window is not None for row in visibilities for seen in row) else 0,
    )
    return Scope(fingerprint_of(vllm_config, profile, rows), layout)


def _plain(value: Any) -> Any:
    """JSON values of a configuration; what JSON has no form for, such as a dtype, by its name."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
