"""What REDKNOT can serve: the checks that run as soon as an engine's configuration is complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from vllm_redknot.config import SECTION
from vllm_redknot.heads.model_shape import LINEAR_KINDS, ModelShape
from vllm_redknot.heads.resolve import ResolvedHeads, resolve_heads
from vllm_redknot.heads.tensor_parallel import per_rank
from vllm_redknot.refusals import (
    Refusal,
    refusals,
    refusals_of_blend,
    refusals_of_local_heads,
    refusals_of_reuse,
    refusals_of_rows,
)
from vllm_redknot.reuse.gate import verified
from vllm_redknot.reuse.setup import configure
from vllm_redknot.rows.graphs import leave_graphs_to_decode
from vllm_redknot.rows.metrics import show_metrics
from vllm_redknot.rows.schedule import RowSchedule, schedule_of
from vllm_redknot.settings import BACKEND_NAME, is_requested, settings_of

logger = init_logger("vllm.redknot")


class UnsupportedError(ValueError):
    """The engine's configuration asks for something REDKNOT does not serve."""


def check_engine_config(vllm_config: Any) -> None:
    """Refuse what cannot be served, before any process is started. Does nothing unless REDKNOT is asked for.

    Raises:
        UnsupportedError: A feature REDKNOT does not serve.
        RedknotConfigError: A wrong setting.
        RowScheduleError: A schedule of rows that does not fit the model.
        HeadFileError, HeadFitError: A head file that cannot be read or does not fit the model or its tensor
            parallelism.
        ReceiptError: KV reuse is "on", and no receipt says that the model bears it.
    """
    if vllm_config.model_config is None:
        return
    if not is_requested(vllm_config):
        additional = vllm_config.additional_config
        if isinstance(additional, dict) and SECTION in additional:
            logger.warning_once(
                "REDKNOT: additional_config has settings for REDKNOT, but it is not the attention backend: they have no"
                " effect. Add --attention-backend REDKNOT."
            )
        return
    _refuse(refusals(vllm_config))
    profile = resolve_model_heads(vllm_config).profile
    rank = per_rank(profile, vllm_config.parallel_config.tensor_parallel_size).profile
    if not rank.is_all_global:
        _refuse(refusals_of_local_heads(vllm_config))
    if (rows := resolve_model_rows(vllm_config)) is not None:
        _refuse(refusals_of_rows(vllm_config, rows))
        leave_graphs_to_decode(vllm_config)
        show_metrics(vllm_config)
    _state_rows(vllm_config, rows)
    reuse = settings_of(vllm_config).reuse
    if reuse != "off":
        _refuse(refusals_of_blend(vllm_config, skips_rows=rows is not None))
        _refuse(refusals_of_reuse(vllm_config, rows))
        receipt = verified(vllm_config, profile, rows) if reuse == "on" else None
        configure(vllm_config, *((0, None) if receipt is None else (receipt.boundary, receipt.share)))


def _state_rows(vllm_config: Any, rows: RowSchedule | None) -> None:
    """Put the schedule in force among the settings: vLLM keys compiled graphs by those, not by files or variables."""
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or not vllm_config.compilation_config.mode:
        return
    section = additional.get(SECTION) or {}
    stated = None if rows is None else rows.to_section()
    if section.get("rows") != stated:
        vllm_config.additional_config = {**additional, SECTION: {**section, "rows": stated or "off"}}


def _refuse(found: Sequence[Refusal]) -> None:
    if found:
        raise UnsupportedError(
            f"REDKNOT does not serve {'; '.join(map(str, found))}. Or leave out --attention-backend {BACKEND_NAME}."
        )


def resolve_model_heads(vllm_config: Any) -> ResolvedHeads:
    """The head classes for the configured model."""
    return resolve_heads(settings_of(vllm_config), model_shape(vllm_config.model_config))


def resolve_model_rows(vllm_config: Any) -> RowSchedule | None:
    """What prompt tokens skip in the configured model; None: nothing.

    Raises:
        RowScheduleError: A wrong key or value, or a layer the model has not.
    """
    schedule = schedule_of(settings_of(vllm_config).rows, resolve_model_heads(vllm_config).profile.sections)
    if schedule is not None:
        model = vllm_config.model_config
        schedule.check_model(model.get_total_num_hidden_layers(), model.get_hidden_size())
    return schedule


def model_shape(model_config: Any) -> ModelShape:
    """The shape of a model that vLLM has recognised."""
    text = model_config.hf_text_config
    folder = Path(model_config.model)
    kinds = getattr(text, "layer_types", None)
    attention = None
    if isinstance(kinds, (list, tuple)) and LINEAR_KINDS.intersection(kinds):
        attention = tuple(index for index, kind in enumerate(kinds) if kind not in LINEAR_KINDS)
    rope = getattr(text, "rope_parameters", None)
    theta = rope.get("rope_theta") if isinstance(rope, dict) else getattr(text, "rope_theta", None)
    return ModelShape(
        num_layers=model_config.get_total_num_hidden_layers(),
        num_kv_heads=model_config.get_total_num_kv_heads(),
        num_attention_heads=model_config.model_arch_config.total_num_attention_heads,
        head_dim=model_config.get_head_size(),
        hidden_size=model_config.get_hidden_size(),
        vocab_size=model_config.get_vocab_size(),
        model_type=text.model_type,
        model_dir=folder if folder.is_dir() else None,
        attention_layer_ids=attention,
        intermediate_size=getattr(text, "intermediate_size", None),
        rope_theta=None if theta is None else float(theta),
    )
