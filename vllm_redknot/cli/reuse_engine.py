"""The engine of `redknot verify-reuse`: REDKNOT with a segment store in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vllm_redknot.cli.configurations import row_schedule
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.eval_engines import PLACES
from vllm_redknot.cli.plan_inputs import ELEMENT_BYTES
from vllm_redknot.cli.serve_flags import redknot_section
from vllm_redknot.cli.target import Target
from vllm_redknot.config import ENV_PREFIX, SECTION, RedknotConfig
from vllm_redknot.evals.fingerprints import model_fingerprint, versions
from vllm_redknot.evals.memory import request_kv_bytes
from vllm_redknot.evals.run import Engine
from vllm_redknot.settings import BACKEND_NAME

if TYPE_CHECKING:
    from vllm_redknot.evals.reuse_cases import ReuseChoices

NAME: Final = "reuse"
GIB: Final = 2**30
PROMPTS: Final = 4
"""Longest prompts whose documents the store has room for."""
OURS: Final[Mapping[str, Any]] = {
    "reuse": "force",
    "store_disk_gib": 0.0,
    "capture": "first",
    "min_reuse": 64,
}
"""Documents encoded alone, kept in memory."""
NOT_FROM_VARIABLES: Final = (*OURS, "store", "store_memory_gib", "receipt")


def check_variables(config: RedknotConfig) -> None:
    """Raises CliError where the environment sets what the gate sets itself: it would win."""
    default = RedknotConfig(cache_dir=config.cache_dir)
    for key in NOT_FROM_VARIABLES:
        if getattr(config, key) != getattr(default, key):
            raise CliError(
                f"{ENV_PREFIX}{key.upper()} is set, and verify-reuse chooses that itself: unset it"
            )


def reuse_engine(
    arguments: Mapping[str, Any],
    target: Target,
    config: RedknotConfig,
    choices: ReuseChoices,
    store: Path,
) -> Engine:
    """The engine, and all that its answers depend on. `store`: an empty folder that nothing is kept in."""
    assert target.model is not None
    rows = row_schedule(target, config)
    longest = request_kv_bytes(
        target.model.shape,
        arguments["max_model_len"],
        ELEMENT_BYTES[arguments["dtype"]],
        arguments["block_size"],
    )
    section = {
        **redknot_section(config, ()),
        **OURS,
        "boundary": choices.boundary,
        "store": str(store),
        "store_memory_gib": max(1.0, PROMPTS * longest / GIB),
    }
    shared = {key: value for key, value in arguments.items() if key != "model"}
    identity = {
        "model": model_fingerprint(target.model.path),
        "heads": target.profile.fingerprint(),
        "seed": choices.seed,
        "versions": versions(),
        "arguments": shared,
        "settings": {key: value for key, value in section.items() if key not in (*PLACES, "store")},
        # A head file may state it, and the fingerprint of its classes does not tell.
        "rows": None if rows is None else rows.digest(),
    }
    return Engine(
        NAME,
        {**arguments, "attention_backend": BACKEND_NAME, "additional_config": {SECTION: section}},
        identity,
    )
