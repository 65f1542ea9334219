"""The segment store that an engine's settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vllm_redknot.config import RedknotConfig
from vllm_redknot.reuse.disk import DiskTier
from vllm_redknot.reuse.scope import Scope
from vllm_redknot.reuse.store import SegmentStore

GIB: Final = 2**30


def open_store(scope: Scope, settings: RedknotConfig) -> SegmentStore:
    """The store of a scope: host memory, and the folder `settings.store`, which is made where it is missing."""
    assert settings.store is not None, "the settings have been checked"
    disk = DiskTier(Path(settings.store).expanduser(), scope, int(settings.store_disk_gib * GIB))
    return SegmentStore(scope, int(settings.store_memory_gib * GIB), disk, min_tokens=settings.min_reuse)
