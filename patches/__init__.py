"""Everything the plugin changes in vLLM, one file per symbol. `apply_all` is the only place that applies them."""

from vllm_redknot.patches import cpu_backend_choice, early_checks, kv_cache_groups
from vllm_redknot.patches.ledger import Patch, PatchError, apply, is_applied

__all__ = ["Patch", "PatchError", "apply_all", "is_applied", "patches_for_this_vllm"]


def patches_for_this_vllm() -> list[Patch]:
    """The patches that the installed vLLM and its current platform need."""
    from vllm.platforms import current_platform

    platform_class = type(current_platform)
    patches = [kv_cache_groups.patch(), early_checks.patch(platform_class)]
    if current_platform.is_cpu():
        patches.append(cpu_backend_choice.PATCH)
    return patches


def apply_all() -> None:
    """Apply every patch that is not applied yet.

    Raises:
        PatchError: A symbol is not what its patch was written for. Earlier patches of the list stay applied; each is
            inert unless REDKNOT is asked for.
    """
    for patch in patches_for_this_vllm():
        if not is_applied(patch):
            apply(patch)
