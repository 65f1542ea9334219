"""Everything the plugin changes in vLLM, one file per symbol. `apply_all` is the only place that applies them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable

from vllm_redknot.patches import (
    cpu_backend_choice,
    early_checks,
    kv_cache_groups,
    row_graphs,
    row_layers,
    row_prefix_cache,
    row_prompts,
)
from vllm_redknot.patches.ledger import Patch, PatchError, apply, is_applied

__all__ = [
    "Patch",
    "PatchError",
    "apply_all",
    "apply_missing",
    "every_patch",
    "is_applied",
    "patches_for_this_vllm",
]

CPU_PLATFORM = ("vllm.platforms.cpu", "CpuPlatform")
CUDA_PLATFORM = ("vllm.platforms.cuda", "CudaPlatformBase")
ROW_PATCHES_OF_WORKERS = (row_layers.PATCH, row_graphs.PATCH, row_prompts.PATCH)
ROW_PATCHES_OF_CORES = (row_prefix_cache.PATCH,)
"""Applied where row skipping is in force: to import their modules takes long, and some must not be imported early."""


def every_patch(has_module: Callable[[str], bool]) -> list[Patch]:
    """The patches for a vLLM that has these modules, on all platforms; always in the same order."""
    return [
        kv_cache_groups.patch(has_module),
        early_checks.patch(*CPU_PLATFORM),
        early_checks.patch(*CUDA_PLATFORM),
        cpu_backend_choice.PATCH,
        *ROW_PATCHES_OF_WORKERS,
        *ROW_PATCHES_OF_CORES,
    ]


def patches_for_this_vllm() -> list[Patch]:
    """The patches that the installed vLLM and its current platform need."""
    from vllm.platforms import current_platform

    owner = early_checks.owner_of(type(current_platform))
    patches = [kv_cache_groups.patch(_is_installed), early_checks.patch(owner.__module__, owner.__name__)]
    if current_platform.is_cpu():
        patches.append(cpu_backend_choice.PATCH)
    return patches


def apply_all() -> None:
    """Apply every patch that is not applied yet.

    Raises:
        PatchError: A symbol is not what its patch was written for. Earlier patches of the list stay applied; each is
            inert unless REDKNOT is asked for.
    """
    apply_missing(patches_for_this_vllm())


def apply_missing(patches: Iterable[Patch]) -> None:
    """Apply those of some patches that are not applied yet.

    Raises:
        PatchError: See `apply_all`.
    """
    for patch in patches:
        if not is_applied(patch):
            apply(patch)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
