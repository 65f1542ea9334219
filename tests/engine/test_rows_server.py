"""Row skipping in a real server: its metrics say which rows its engine core, another process, has skipped."""

from collections import defaultdict
from pathlib import Path

import httpx
import pytest

from benchmarks.server import serving
from tests.engine.conftest import Cut
from vllm_redknot.benchmarking import client
from vllm_redknot.benchmarking.store import RowCount

pytestmark = pytest.mark.slow

ROWS = '{"redknot": {"rows": {"ffn_from": 20, "attention_from": 24, "sink": 4, "recent": 128}}}'
FLAGS = [
    *("--attention-backend", "REDKNOT", "--enforce-eager", "--max-model-len", "2048", "--block-size", "32"),
    *("--max-num-batched-tokens", "512", "--kv-cache-memory-bytes", str(2**28), "--additional-config", ROWS),
]
LAYERS = 30


def test_a_servers_metrics_have_the_rows_its_engine_core_skipped(
    model_path: Path, cut: Cut, tmp_path: Path
) -> None:
    with serving(model_path, FLAGS, tmp_path / "log", timeout=600) as server:
        for tokens in (60, 1000):
            body = {"model": str(model_path), "prompt": cut(0, tokens), "max_tokens": 4, "temperature": 0}
            httpx.post(f"{server.base_url}/completions", json=body, timeout=300).raise_for_status()
        text = httpx.get(f"http://127.0.0.1:{server.port}/metrics").text
        summed = client.row_counts(server)
    rows: dict[tuple[str, str, int], float] = defaultdict(float)
    for found in client.ROWS.finditer(text):
        labels = dict(client.LABEL.findall(found["labels"]))
        rows[labels["kind"], labels["outcome"], int(labels["layer"])] += float(found["value"])
    assert len(rows) == 2 * 2 * LAYERS
    # 1000 - 4 - 128 tokens skip. Steps in which none does are not counted: the short prompt's, and decode.
    skipped, counted = 868, 1000
    for kind, first in (("ffn", 20), ("attention", 24)):
        for layer in range(LAYERS):
            late = skipped if layer >= first else 0
            assert rows[kind, "skipped", layer] == late
            assert rows[kind, "computed", layer] == counted - late
    assert summed == {
        kind: RowCount(computed=LAYERS * counted - late * skipped, skipped=late * skipped)
        for kind, late in (("ffn", 10), ("attention", 6))
    }
