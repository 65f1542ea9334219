"""The gate in a server: `"reuse": "on"` holds only for a model that has the receipt of `redknot verify-reuse`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from vllm.logger import init_logger

from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.installed import installed_version
from vllm_redknot.reuse.identity import fingerprint_of
from vllm_redknot.reuse.policy import BLEND
from vllm_redknot.reuse.receipt import Receipt, ReceiptError, matching_receipt, places
from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.settings import settings_of

logger = init_logger("vllm.redknot")

DISTRIBUTIONS: Final = ("vllm-redknot", "vllm", "torch")
"""Another version is worth a warning: figures may be a little different, stored KV is not."""


def verified(vllm_config: Any, profile: HeadProfile, rows: RowSchedule | None) -> Receipt:
    """The receipt of the configured model and its repair policy: no request may recompute less than it says.

    Args:
        vllm_config: a complete configuration, as it is about to run.
        profile: the head profile of all ranks, overrides applied.
        rows: what prompt tokens skip; None: nothing.

    Raises:
        ReceiptError: No receipt, or one that cannot be read or is of something else.
        ReuseError: The checkpoint is no local folder of safetensors files.
    """
    settings = settings_of(vllm_config)
    fingerprint = fingerprint_of(vllm_config, profile, rows)
    folder = Path(vllm_config.model_config.model)
    try:
        receipt, path = matching_receipt(
            places(settings.receipt, folder, settings.cache_path, fingerprint),
            fingerprint,
            settings.boundary,
            settings.share if settings.policy == BLEND else None,
        )
    except ReceiptError as error:
        raise ReceiptError(
            f'KV reuse is "on", and {error}. Run `redknot verify-reuse {folder}` with the settings and --dtype of this'
            ' server to have a receipt, or give {"redknot": {"reuse": "force"}} to go without'
        ) from error
    logger.info_once("REDKNOT: KV reuse as %s allows: %s", path, _told(receipt))
    if receipt.is_thin:
        logger.warning_once(
            "REDKNOT: %s rests on %d questions of a data set, too few to see a loss: run verify-reuse without --quick",
            path,
            receipt.asked.questions,
        )
    changed = [name for name in DISTRIBUTIONS if receipt.versions.get(name) != installed_version(name)]
    if changed:
        logger.warning_once("REDKNOT: %s was made with another version of %s", path, ", ".join(changed))
    return receipt


def _told(receipt: Receipt) -> str:
    kept = "; ".join(
        f"{check.task} {check.metric} {check.reuse:.3f} of {check.dense:.3f}" for check in receipt.checks
    )
    repair = f"boundary {receipt.boundary}" if receipt.share is None else f"blend, share {receipt.share}"
    return f"{repair}; {kept}"
