import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, WriteModel
from vllm_redknot.cli.capacity_plan import Server, effective_profile, plan_context
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.kvcache.capacity import PageFormat, Workload, capacity

COST_KEYS = {
    *("request_bytes", "least_kv_bytes", "closed_form_bytes", "groups", "padding_slots", "promoted_segments"),
    *("sessions", "cached_tokens", "prefill_attention_flops", "decode_attention_flops", "prefill_flops"),
}
SHAPE = ("--layers", "4", "--kv-heads", "2", "--query-heads", "8", "--head-dim", "64")


def planned(redknot: Run, *arguments: str | Path) -> dict[str, Any]:
    """The document of a plan that must succeed."""
    result = redknot("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_the_keys_are_the_same_however_the_model_is_given(
    redknot: Run, write_model: WriteModel, heads_file: Path
) -> None:
    ways = [
        (write_model(), "--heads", heads_file),
        ("--heads", heads_file, "--query-heads", "8", "--head-dim", "64"),
        SHAPE,
    ]
    documents = [planned(redknot, *way, "--contexts", "8K", "--kv-bytes", "1GiB") for way in ways]
    assert documents[0].keys() == documents[1].keys() == documents[2].keys()
    for document in documents:
        for row in document["contexts"]:
            assert set(row["redknot"]) == set(row["stock"]) == COST_KEYS
    # Only a model's folder says how wide its FFN is.
    for row in documents[0]["contexts"]:
        for side in ("redknot", "stock"):
            assert set(row[side]["prefill_flops"]) == {"projections", "ffn", "attention", "total"}
            row[side]["prefill_flops"] = None
    assert documents[0]["contexts"] == documents[1]["contexts"]


def test_the_figures_are_those_of_the_closed_form(redknot: Run, heads_file: Path) -> None:
    document = planned(redknot, "--heads", heads_file, *SHAPE, "--contexts", "32K", "--batched-tokens", "1K")
    assert document["in_flight_tokens"] == 2048
    page = PageFormat(head_size=64, element_bytes=2, block_size=16)
    expected = capacity(load_profile(heads_file), page, Workload(32768, 2048))
    (row,) = document["contexts"]
    assert row["redknot"]["closed_form_bytes"] == expected.request_bytes
    assert row["stock"]["request_bytes"] == expected.dense_request_bytes
    assert row["redknot"]["request_bytes"] >= expected.request_bytes
    assert row["redknot"]["sessions"] is None


def test_sessions_are_whole_blocks_of_the_given_memory(redknot: Run) -> None:
    (row,) = planned(redknot, *SHAPE, "--contexts", "1000", "--kv-bytes", "10MB")["contexts"]
    # A block id is a page of 4096 bytes for each of 8 heads; 63 blocks of 16 tokens hold 1000.
    assert row["stock"]["sessions"] == (10_000_000 // (8 * 4096)) / 63
    assert row["stock"]["cached_tokens"] == int(row["stock"]["sessions"] * 1000)


def test_tensor_parallelism_divides_heads_and_promotes(redknot: Run, heads_file: Path) -> None:
    whole = planned(redknot, "--heads", heads_file, *SHAPE, "--contexts", "64K")["contexts"][0]
    half = planned(redknot, "--heads", heads_file, *SHAPE, "--contexts", "64K", "--tp", "2")["contexts"][0]
    assert half["stock"]["request_bytes"] == whole["stock"]["request_bytes"] / 2
    assert half["stock"]["prefill_attention_flops"] == whole["stock"]["prefill_attention_flops"] / 2
    # Both ranks have one head a layer, which sees everything in two of the four.
    assert half["kept_share"] > 0.5 > whole["kept_share"]


def test_gpu_memory_is_what_weights_and_reserve_leave(
    redknot: Run, fails: Callable[..., str], write_model: WriteModel
) -> None:
    folder = write_model()
    (folder / "model.safetensors").write_bytes(b"x" * 2**20)
    common = (folder, "--gpu-memory", "4GiB", "--gpu-memory-utilization", "0.5")
    assert (
        planned(redknot, *common, "--reserve", "1GiB", "--tp", "2")["kv_cache_memory_bytes"] == 2**30 - 2**19
    )
    assert planned(redknot, *common, "--weights", "0", "--reserve", "0")["kv_cache_memory_bytes"] == 2**31
    assert "an estimate" in " ".join(redknot("plan", *common, "--reserve", "1GiB").stdout.split())
    assert "leave no KV memory" in fails("plan", *common, "--weights", "3GiB")
    assert "give --weights or --kv-bytes" in fails("plan", *SHAPE, "--gpu-memory", "4GiB", status=2)


def test_fp32_doubles_the_bytes(redknot: Run) -> None:
    two, four = (
        planned(redknot, *SHAPE, "--dtype", dtype)["contexts"][0] for dtype in ("bfloat16", "float32")
    )
    assert four["stock"]["request_bytes"] == 2 * two["stock"]["request_bytes"]


def test_the_contexts_of_a_model_end_with_its_longest(redknot: Run, write_model: WriteModel) -> None:
    rows = planned(redknot, write_model())["contexts"]
    assert [row["context"] for row in rows] == [8192, 16384]


def test_more_groups_never_cost_more(redknot: Run, heads_file: Path) -> None:
    rows = [
        planned(redknot, "--heads", heads_file, *SHAPE, "--max-groups", str(bound))["contexts"][-1]["redknot"]
        for bound in (1, 2, 16)
    ]
    costs = [row["request_bytes"] for row in rows]
    assert costs == sorted(costs, reverse=True)
    assert rows[0]["groups"] == 1
    assert rows[0]["promoted_segments"] == 6


def test_layers_with_a_window_of_their_own_keep_it_in_both_columns(
    redknot: Run, write_model: WriteModel
) -> None:
    folder = write_model(model_type="mistral", sliding_window=512)
    (row,) = planned(redknot, folder, "--heads", "all-global", "--contexts", "16K")["contexts"]
    assert row["redknot"] == row["stock"]
    full = planned(redknot, *SHAPE, "--contexts", "16K")["contexts"][0]["stock"]
    assert row["stock"]["request_bytes"] < 0.4 * full["request_bytes"]


def test_the_engines_view_of_a_profile_leaves_nothing_to_the_prefix(heads_file: Path) -> None:
    profile = load_profile(heads_file).with_overrides(dense_prefix_layers=2)
    seen = effective_profile(profile, (0, 1, 3), {1: 99})
    assert seen.dense_prefix_layers == 0
    assert seen.layer_ids == (0, 1, 3)
    assert [seen.visibility(layer, 0) for layer in (0, 1, 3)] == [(None, 0), (99, 0), (256, 16)]


def test_rows_for_layers_without_attention_cost_nothing(heads_file: Path) -> None:
    page = PageFormat(64, 2, 16)
    server = Server(load_profile(heads_file), (0, 1, 2, 3), 8, page, 2048, 16)
    half = replace(server, attention_layers=(0, 1))
    assert plan_context(half, 8192).stock.request_bytes * 2 == plan_context(server, 8192).stock.request_bytes


@pytest.mark.parametrize("width", [40, 80, 160])
def test_people_get_tables_within_the_terminals_width(redknot: Run, heads_file: Path, width: int) -> None:
    result = redknot("plan", "--heads", heads_file, *SHAPE, "--kv-bytes", "1GiB", width=width)
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if str(heads_file) not in line]
    assert max(map(len, lines)) <= width
    assert result.stdout.count("128K") == 3
    assert "…" not in result.stdout


def test_the_plan_is_drawn(
    redknot: Run, fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert redknot("plan", *SHAPE, "--png", tmp_path / "plan.png").exit_code == 0
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in fails("plan", *SHAPE, "--png", tmp_path / "other.png")


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        ((), 2, "give MODEL, or --layers"),
        (("--layers", "4"), 2, "give MODEL, or --layers"),
        (("--layers", "4", "--kv-heads", "2"), 2, "--query-heads"),
        (("--layers", "4", "--kv-heads", "2", "--query-heads", "8"), 2, "--head-dim"),
        ((*SHAPE, "--kv-bytes", "1G", "--gpu-memory", "1G"), 2, "give one of them"),
        ((*SHAPE, "--layers", "9" * 12), 2, "--layers"),
        ((*SHAPE, "--kv-heads", "1025"), 2, "--kv-heads"),
        ((*SHAPE, "--query-heads", "1025"), 2, "--query-heads"),
        ((*SHAPE, "--head-dim", "65537"), 2, "--head-dim"),
        ((*SHAPE, "--contexts", "8K,0"), 2, "--contexts: '0' is no number of tokens"),
        ((*SHAPE, "--kv-bytes", "lots"), 2, "'lots' is no number of bytes"),
        ((*SHAPE, "--tp", "3"), 1, "query heads do not split"),
        (
            (*SHAPE[:4], "--query-heads", "9", "--head-dim", "64"),
            1,
            "9 query heads do not split over 2 KV heads",
        ),
        ((*SHAPE, "--heads", "none.json"), 1, "none.json"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    fails: Callable[..., str], arguments: tuple[str, ...], status: int, named: str
) -> None:
    if not arguments:
        arguments = ("--tp", "1")
    assert named in fails("plan", *arguments, status=status)


def test_numbers_that_contradict_are_refused(
    fails: Callable[..., str], heads_file: Path, write_model: WriteModel, shared_data: Path
) -> None:
    assert "--layers is 5" in fails("plan", "--heads", heads_file, "--layers", "5", *SHAPE[2:])
    assert "without MODEL" in fails("plan", write_model(), "--layers", "4", status=2)
    mla = shared_data / "head_class" / "dsv4_safe_stride8.json"
    assert "share one KV cache" in fails("plan", "--heads", mla, "--head-dim", "64")


ROWS = '{"ffn_from": 2, "attention_from": 3, "sink": 4, "recent": 124}'


def test_rows_skipped_are_told_with_the_flops_they_save(
    redknot: Run, write_model: WriteModel, heads_file: Path
) -> None:
    document = planned(
        redknot, write_model(), "--heads", heads_file, "--rows", ROWS, "--contexts", "64,1K,8K"
    )
    assert document["row_schedule"] == json.loads(ROWS)
    short, middle, long = document["contexts"]
    assert short["rows_skipped"] == {"attention": 0.0, "ffn": 0.0}
    assert short["prefill_flops_with_rows"] == short["redknot"]["prefill_flops"]
    # Of 4 layers one skips attention and two the FFN, for 896 of 1024 tokens.
    assert middle["rows_skipped"] == {"attention": 0.25 * 0.875, "ffn": 0.5 * 0.875}
    heads, both = long["redknot"]["prefill_flops"], long["prefill_flops_with_rows"]
    assert both["ffn"] == round(heads["ffn"] * (1 - long["rows_skipped"]["ffn"]))
    assert both["projections"] < heads["projections"]
    assert both["total"] < heads["total"] < long["stock"]["prefill_flops"]["total"]
    without = planned(redknot, write_model(), "--heads", heads_file, "--contexts", "8K")
    assert without["row_schedule"] is None
    (row,) = without["contexts"]
    assert row["rows_skipped"] is row["prefill_flops_with_rows"] is None
    assert row["redknot"] == long["redknot"]


def test_a_schedule_in_the_head_file_is_planned_and_may_be_turned_off(redknot: Run, heads_file: Path) -> None:
    document = json.loads(heads_file.read_text())
    document["sections"]["rows"] = json.loads(ROWS)
    heads_file.write_text(json.dumps(document))
    way = ("--heads", heads_file, "--query-heads", "8", "--head-dim", "64")
    assert planned(redknot, *way)["row_schedule"] == json.loads(ROWS)
    assert planned(redknot, *way, "--rows", "off")["row_schedule"] is None


def test_people_read_what_rows_save(redknot: Run, write_model: WriteModel, heads_file: Path) -> None:
    shown = redknot("plan", write_model(), "--heads", heads_file, "--rows", ROWS, "--contexts", "1K").stdout
    assert "FLOPs of one prefill: projections, FFN and attention" in shown
    assert "21.9%  43.8%" in shown
    assert "With row skipping in prefill: no FFN from layer 2, no attention from layer 3" in shown


def test_memory_and_pages_that_no_server_has_are_wrong_usage(
    fails: Callable[..., str], write_model: WriteModel
) -> None:
    assert "0 bytes hold no request" in fails("plan", write_model(), "--kv-bytes", "0", status=2)
    assert "--block-size is 24" in fails("plan", write_model(), "--block-size", "24", status=2)


def test_a_schedule_that_does_not_fit_is_one_line(
    fails: Callable[..., str], heads_file: Path, write_model: WriteModel
) -> None:
    way = ("--heads", heads_file, "--query-heads", "8", "--head-dim", "64")
    assert "rows.ffn_from is 9" in fails("plan", *way, "--rows", '{"ffn_from": 9}')
    assert "rows.ffn_from is 9" in fails("plan", write_model(), "--rows", '{"ffn_from": 9}')
    assert "redknot.rows is" in fails("plan", *way, "--rows", '{"ffn_form": 9}', status=2)
    assert "no JSON object" in fails("plan", *way, "--rows", "{", status=2)
