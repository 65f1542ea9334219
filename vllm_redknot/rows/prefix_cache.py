"""Makes the engine core of this process mark the blocks of prompts that skip rows."""

from __future__ import annotations

from typing import Any, Final

from vllm.config import VllmConfig

from vllm_redknot.patches import ROW_PATCHES_OF_CORES, apply_missing
from vllm_redknot.rows.block_hashes import RowBlockHasher
from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.settings import is_requested
from vllm_redknot.support import resolve_model_rows

DONE: Final = "redknot_marks_blocks"
"""Attribute of an engine core that was seen to."""


def mark_blocks(core: Any) -> None:
    """Make an engine core mark the blocks of its requests, if its model skips rows. Done once per core.

    Args:
        core: vLLM's `EngineCore`.
    """
    if DONE in vars(core):
        return
    setattr(core, DONE, True)
    hasher, vllm_config = core.request_block_hasher, core.vllm_config
    schedule = _schedule(vllm_config)
    if hasher is not None and schedule is not None:
        core.request_block_hasher = RowBlockHasher(hasher, schedule, vllm_config.cache_config.block_size)


def prepare_core(vllm_config: Any) -> None:
    """Patch the engine core of this process, if its model skips rows."""
    # vLLM's planner is also called with less than a whole configuration; nothing can be asked for there.
    if isinstance(vllm_config, VllmConfig) and _schedule(vllm_config) is not None:
        apply_missing(ROW_PATCHES_OF_CORES)


def _schedule(vllm_config: Any) -> RowSchedule | None:
    if not is_requested(vllm_config) or getattr(vllm_config, "model_config", None) is None:
        return None
    return resolve_model_rows(vllm_config)
