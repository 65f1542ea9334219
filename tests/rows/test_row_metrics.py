"""What a worker counts is among the metrics of the process that started it, by layer and kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest

from vllm_redknot.rows import metrics
from vllm_redknot.rows.counters import ATTENTION, FFN, RowCounters
from vllm_redknot.rows.metrics import RowMetricFile, metrics_folder, show_metrics

WORKER = """
import sys
from pathlib import Path
from vllm_redknot.rows.metrics import RowMetricFile
file = RowMetricFile(Path(sys.argv[1]))
for _ in range(2):
    file.add("ffn", 7, "computed", 100)
    file.add("attention", 7, "computed", 3)
"""


@pytest.fixture(autouse=True)
def _no_folder_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def engine(folder: Path, name: str) -> Any:
    """What of a `VllmConfig` decides."""
    return SimpleNamespace(
        additional_config={"redknot": {"cache_dir": str(folder)}}, instance_id=f"{folder.name}{name}"
    )


def shown(kind: str, layer: int, outcome: str) -> float | None:
    """A value among this process's metrics."""
    labels = {"kind": kind, "layer": str(layer), "outcome": outcome}
    value: float | None = prometheus_client.REGISTRY.get_sample_value(
        "vllm:redknot_prefill_rows_total", labels
    )
    return value


def test_counts_of_workers_are_added_up_by_layer_and_kind(tmp_path: Path) -> None:
    config = engine(tmp_path, "a")
    show_metrics(config)
    before = {key: shown(*key) or 0.0 for key in ((FFN, 7, "computed"), (FFN, 8, "skipped"))}
    subprocess.run([sys.executable, "-c", WORKER, metrics_folder(config)], check=True, timeout=300)
    own = RowCounters(RowMetricFile(metrics_folder(config)))
    own.add(FFN, 7, 1, 2)
    own.add(FFN, 8, 5, 6)
    own.add(ATTENTION, 8, 5, 0)
    assert shown(FFN, 7, "computed") == before[FFN, 7, "computed"] + 201
    assert shown(FFN, 8, "skipped") == before[FFN, 8, "skipped"] + 6
    text = prometheus_client.generate_latest().decode()
    assert text.count("# TYPE vllm:redknot_prefill_rows_total counter") == 1
    assert 'vllm:redknot_prefill_rows_total{kind="attention",layer="8",outcome="skipped"} 0.0' in text


def test_two_engines_of_one_process_are_one_metric(tmp_path: Path) -> None:
    before = shown(FFN, 30, "computed") or 0.0
    for name in ("b", "c"):
        show_metrics(engine(tmp_path, name))
        RowMetricFile(metrics_folder(engine(tmp_path, name))).add(FFN, 30, "computed", 4)
    assert shown(FFN, 30, "computed") == before + 8


def test_ranks_of_one_engine_share_a_folder(tmp_path: Path) -> None:
    assert metrics_folder(engine(tmp_path, "d_dp3")) == metrics_folder(engine(tmp_path, "d"))
    assert metrics_folder(engine(tmp_path, "d")) != metrics_folder(engine(tmp_path, "e"))


def test_the_folder_vllm_has_for_several_processes_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    config = engine(tmp_path, "f")
    show_metrics(config)
    assert metrics_folder(config) == tmp_path
    assert tmp_path not in metrics._collector().folders
    RowMetricFile(metrics_folder(config)).add(FFN, 1, "computed", 9)
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.multiprocess.MultiProcessCollector(registry)
    labels = {"kind": FFN, "layer": "1", "outcome": "computed"}
    assert registry.get_sample_value("vllm:redknot_prefill_rows_total", labels) == 9


def test_a_folder_that_cannot_be_made_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics").write_text("a file")
    with caplog.at_level("WARNING", logger="vllm.redknot"):
        file = RowMetricFile(metrics_folder(engine(tmp_path, "g")))
        for layer in range(3):
            file.add(FFN, layer, "computed", 9)
    assert caplog.text.count("no metrics of rows") == 1


def test_the_folder_goes_with_the_process_that_shows_it(tmp_path: Path) -> None:
    code = """
import sys
from types import SimpleNamespace
from vllm_redknot.rows.metrics import RowMetricFile, metrics_folder, show_metrics
config = SimpleNamespace(additional_config={"redknot": {"cache_dir": sys.argv[1]}}, instance_id="x")
show_metrics(config)
RowMetricFile(metrics_folder(config)).add("ffn", 1, "computed", 9)
assert list(metrics_folder(config).iterdir())
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=300)
    assert list((tmp_path / "metrics").glob("*/*")) == []


def test_what_a_killed_server_left_is_removed_by_the_next(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, kept = (metrics_folder(engine(tmp_path, name)) for name in ("h", "i"))
    RowMetricFile(kept).add(FFN, 1, "computed", 9)
    left.mkdir()
    (left / f"counter_redknot-{gone.pid}.db").touch()
    show_metrics(engine(tmp_path, "j"))
    assert kept.is_dir()
    assert not left.exists()
