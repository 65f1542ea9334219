"""Rows that one process counts, among the Prometheus metrics of another: a model's workers count, the server is asked.

vLLM has its own way for figures that its scheduler knows; what a worker counts does not travel. prometheus_client has
files for several processes, which it adds up whenever it is asked. vLLM uses them for several API servers, then these
counters are in its folder; else they are in one of ours, and a collector of our own reads that.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import prometheus_client
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from vllm_redknot.config import prometheus_folder
from vllm_redknot.settings import settings_of

logger = logging.getLogger("vllm.redknot")

NAME: Final = "vllm:redknot_prefill_rows"
HELP: Final = "Rows (tokens x layers) of prefill steps in which tokens skip work"
RANK: Final = re.compile(r"_dp\d+$")
"""What vLLM appends to the name of an engine that is one of several."""


class RowMetricFile:
    """The counters of one process, in a file of the folder, which is made with the first count."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _file(self) -> Any | None:
        opened: Any = MmapedDict
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # The first word says what it holds.
            return opened(str(self._folder / f"counter_redknot-{os.getpid()}.db"))
        except OSError as error:
            logger.warning("REDKNOT: no metrics of rows, %s cannot be written: %s", self._folder, error)
            return None

    def add(self, kind: str, layer: int, outcome: str, rows: int) -> None:
        """Count rows of one layer."""
        if self._file is not None:
            key = _key(kind, layer, outcome)
            before, _ = self._file.read_value(key)
            self._file.write_value(key, before + rows, 0.0)


class RowMetrics(Collector):
    """Adds up the files of the folders of this process's servers."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        files = [str(path) for folder in sorted(self.folders) for path in sorted(folder.glob("*.db"))]
        merge: Callable[[list[str]], Iterable[Metric]] = MultiProcessCollector.merge
        return merge(files)


def metrics_folder(vllm_config: Any) -> Path:
    """Where the workers of an engine count: vLLM's own folder for several processes, else one of this engine."""
    shared = prometheus_folder()
    if shared is not None:
        return shared
    # The cache may be shared with other machines.
    ours = settings_of(vllm_config).cache_path / "metrics" / platform.node()
    return ours / RANK.sub("", vllm_config.instance_id)


def show_metrics(vllm_config: Any) -> None:
    """Show what this engine's workers will count among this process's metrics. The folder goes with the process."""
    folder, collector = metrics_folder(vllm_config), _collector()
    if prometheus_folder() is None and folder not in collector.folders:
        _remove_left_behind(folder.parent)
        collector.folders.add(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _remove_left_behind(folders: Path) -> None:
    """Folders of this machine in which only processes counted that are gone: they were killed."""
    for folder in folders.glob("*/"):
        counted = [int(path.stem.rpartition("-")[2]) for path in folder.glob("counter_redknot-*.db")]
        if counted and not any(map(_is_alive, counted)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@lru_cache
def _collector() -> RowMetrics:
    collector = RowMetrics()
    prometheus_client.REGISTRY.register(collector)
    return collector


@cache
def _key(kind: str, layer: int, outcome: str) -> str:
    labels = {"kind": kind, "layer": str(layer), "outcome": outcome}
    key: str = mmap_key(NAME, f"{NAME}_total", list(labels), list(labels.values()), HELP)
    return key
