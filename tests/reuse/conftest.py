"""A store that is open, and what it logs."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_world import Log, disk_tier, document, open_store, write

from vllm_redknot.reuse.store import SegmentStore


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[SegmentStore]:
    """A store that knows document 0 from its directory, and has read nothing of it."""
    write(disk_tier(tmp_path / "store"), document(0))
    store = open_store(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture
def log() -> Iterator[Log]:
    """Warnings that reach vLLM's logger, whether or not vLLM has been imported and set it up."""
    logger, found = logging.getLogger("vllm.redknot"), Log(logging.WARNING)
    logger.addHandler(found)
    yield found
    logger.removeHandler(found)
