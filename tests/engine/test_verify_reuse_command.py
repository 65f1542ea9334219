"""`redknot verify-reuse` with a real engine, and servers with and without the receipt that it writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Cut
from tests.engine.harness import engine
from tests.engine.head_files import with_rows, write
from tests.engine.reuse_engine import ask, store_alone
from vllm_redknot.heads.resolve import bundled_paths
from vllm_redknot.rows.schedule import RowSchedule

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def verified(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document of the short form, shorter still, with its receipt's path."""
    folder = tmp_path_factory.mktemp("verified")
    command = [
        *(sys.executable, "-m", "vllm_redknot.cli", "verify-reuse", str(model_path), "--quick", "--json"),
        *("--documents", "3", "--document-tokens", "150", "--length", "450", "--dtype", "float32"),
        *("--boundary", "16"),
        *("--run", str(folder / "run"), "--output", str(folder)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1700)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_reuse_is_seen_to_change_answers_a_little_and_to_keep_the_budget(verified: dict[str, Any]) -> None:
    totals = {
        (cell["task"], cell["metric"]): cell for cell in verified["figures"] if cell["position"] is None
    }
    assert verified["reused_share"] > 0.5
    assert totals["needle", "found"]["dense"]["value"] == 1.0
    assert totals["needle", "found"]["reuse"]["value"] == 1.0
    for task in ("needle", "named", "squad", "hotpotqa"):
        # Equal answers would mean that nothing was reused.
        assert 1e-5 < totals[task, "kl"]["reuse"]["value"] < 0.5
        assert 0.6 < totals[task, "top-1 agreement"]["reuse"]["value"] <= 1.0
    assert 0.01 < totals["needle", "nll"]["dense"]["value"] < 0.3


def settings(verified: dict[str, Any], store: Path, **changes: Any) -> dict[str, Any]:
    return {"reuse": "on", "receipt": verified["receipt"], "store": str(store), "boundary": 16, **changes}


def test_a_server_with_the_receipt_reuses_documents_and_keeps_its_boundary(
    verified: dict[str, Any], model_path: Path, tmp_path: Path, cut: Cut
) -> None:
    first, second, question = cut(0, 300), cut(2_000, 400), cut(5_000, 20)
    with engine(model_path, settings(verified, tmp_path), dtype="float32") as server:
        store_alone(server, first, second)
        prompt = [*second, *first, *question]
        spans = {"spans": [[0, 400], [400, 700]]}
        assert ask(server, prompt, spans).reused == 700 - 16
        server.llm.reset_prefix_cache()
        less = ask(server, prompt, {**spans, "boundary": 4})
        assert less.reused == 700 - 16
        assert less.details["problem"] == (
            "boundary 4 is less than 16, which the server's receipt is for: 16 was used"
        )
        server.llm.reset_prefix_cache()
        more = ask(server, prompt, {**spans, "boundary": 64})
        assert more.reused == 700 - 64
        assert "problem" not in more.details


def test_a_server_with_other_heads_or_another_type_is_refused(
    verified: dict[str, Any], model_path: Path, tmp_path: Path
) -> None:
    other = settings(verified, tmp_path, heads=write(tmp_path, [[(64, 4)] * 3] * 30))
    with (
        pytest.raises(Exception, match=r"is of something else: heads is '\w+' here and '\w+' there"),
        engine(model_path, other, dtype="float32"),
    ):
        pass
    with (
        pytest.raises(Exception, match="dtype is 'bfloat16' here and 'float32' there"),
        engine(model_path, settings(verified, tmp_path), dtype="bfloat16"),
    ):
        pass


def test_a_head_file_with_a_schedule_of_rows_has_a_receipt_of_its_own(
    model_path: Path, tmp_path: Path, cut: Cut
) -> None:
    rows = {"ffn_from": 20, "attention_from": 24, "recent": 64}
    (bundled,) = (path for path in bundled_paths() if "smollm2" in path.name)
    heads = with_rows(bundled, rows, tmp_path)
    command = [
        *(sys.executable, "-m", "vllm_redknot.cli", "verify-reuse", str(model_path), "--heads", heads),
        *(
            "--quick",
            "--boundary",
            "16",
            "--json",
            "--documents",
            "2",
            "--document-tokens",
            "110",
            "--texts",
            "3",
        ),
        *("--length", "450", "--dtype", "float32", "--run", str(tmp_path / "run"), "--output", str(tmp_path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1700)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    schedule = RowSchedule.parse(rows)
    assert document["row_schedule"] == schedule.to_section()
    assert document["fingerprint"]["rows"] == schedule.digest()
    assert document["reused_share"] > 0.5
    given = {"heads": heads, **settings(document, tmp_path / "store")}
    first, question = cut(0, 300), cut(5_000, 100)
    with engine(model_path, given, dtype="float32") as server:
        store_alone(server, first)
        assert ask(server, [*question, *first, *question], {"spans": [[100, 400]]}).reused == 300 - 16
    with (
        pytest.raises(Exception, match=r"is of something else: rows is '' here and '\w+' there"),
        engine(model_path, {**given, "rows": "off"}, dtype="float32"),
    ):
        pass
