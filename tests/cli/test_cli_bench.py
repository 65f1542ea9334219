"""`redknot bench` with stand-ins for server and client: what it writes, keeps, refuses and cleans up."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.cli import stand_in_vllm
from tests.cli.conftest import Run, WriteModel
from vllm_redknot.benchmarking import machine
from vllm_redknot.benchmarking.run import Measurement
from vllm_redknot.cli.commands import bench as bench_module

STAND_IN = str(Path(stand_in_vllm.__file__))
LEAST = (16384 // 32 + 1) * 32 * 4 * 2 * 2 * 64 * 2
"""KV bytes of stock vLLM for one longest request of the small model, and for the block its pool holds back."""
Bench = Callable[..., Result]


@pytest.fixture
def bench(
    redknot: Run, write_model: WriteModel, heads_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    """Runs `redknot bench` on a small model, by default two lengths and one crowd; results in tmp_path/out."""
    stood_in = partial(Measurement, command=(sys.executable, STAND_IN))
    monkeypatch.setattr(bench_module, "Measurement", stood_in)
    monkeypatch.setattr(bench_module.importlib.util, "find_spec", lambda name: name)
    model = write_model()

    def run(*arguments: str, ttft: str = "64,256", flags: str = "", crowds: bool = False) -> Result:
        only = () if crowds else ("--only", "ttft")
        diary = f"--diary {tmp_path / 'diary'} {flags}"
        return redknot(
            *("bench", model, "--heads", heads_file, "-o", tmp_path / "out", "--ttft", ttft, *only),
            *("--kv-bytes", "33MiB", "--batched-tokens", "512", "--serve-flags", diary, *arguments),
            width=200,
        )

    return run


def diary(folder: Path) -> list[str]:
    """The sides of the servers that were started, in order."""
    return [line.split()[0] for line in (folder / "diary").read_text().splitlines()]


def test_a_document_has_a_row_for_every_workload(bench: Bench, tmp_path: Path) -> None:
    result = bench(
        "--short", "3x32", "--long", "2x1K", "--throughput", "4x512", "--rounds", "2", "--json", crowds=True
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert (document["kind"], document["format"], document["model"]) == ("redknot.bench", 1, "model")
    assert document["heads"]["origin"].startswith("heads.json")
    assert document["heads"]["kv_share"] == 8 / 20
    rows = {(row["workload"], row["metric"]): row for row in document["rows"]}
    assert [key[1] for key in rows] == [
        *["time to first token"] * 2,
        *["inter-token latency"] * 2,
        *("throughput", "KV bytes of a request", "maximum concurrency"),
    ]
    ttft = rows["prompt of 64 tokens, alone", "time to first token"]
    assert ttft["stock"] == {"median": 0.75, "samples": [0.5, 0.75, 1.0] * 2}
    assert (ttft["unit"], ttft["ratio"], ttft["better"]) == ("s", 1.0, "lower")
    assert rows["2 x 1024 tokens at once", "inter-token latency"]["redknot"]["median"] == pytest.approx(20.0)
    most = rows["longest request, 16384 tokens", "maximum concurrency"]
    assert (most["stock"]["median"], most["redknot"]["median"], most["ratio"], most["better"]) == (
        8,
        20,
        2.5,
        "higher",
    )
    assert rows["longest request, 16384 tokens", "KV bytes of a request"]["redknot"]["median"] == round(
        33 * 2**20 / 20
    )


ROWS = ("--rows", '{"ffn_from": 2, "attention_from": 3}')


def test_an_ablation_has_every_part_beside_stock(bench: Bench, tmp_path: Path, heads_file: Path) -> None:
    result = bench(*ROWS, "--ablation", "--rounds", "2", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert diary(tmp_path) == ["stock", *["REDKNOT"] * 6, "stock"]
    told = [json.loads(line.split(maxsplit=2)[2]) for line in (tmp_path / "diary").read_text().splitlines()]
    schedule = {"ffn_from": 2, "attention_from": 3, "sink": 4, "recent": 128}
    heads, rows, both = told[1:4]
    assert heads == {"heads": str(heads_file), "rows": "off"}
    assert rows == {"heads": "all-global", "rows": schedule}
    assert both == {"heads": str(heads_file), "rows": {"ffn_from": 2, "attention_from": 3}}
    assert told[4:] == [both, rows, heads, {}]
    assert document["row_schedule"] == schedule
    skipped = {"attention": 0.1, "ffn": 0.4}
    parts = document["ablation"]
    assert list(parts) == ["heads", "rows", "both"]
    assert [part["rows_skipped"] for part in parts.values()] == [None, skipped, skipped]
    assert [part["row_schedule"] for part in parts.values()] == [None, schedule, schedule]
    assert document["rows_skipped"] == skipped
    assert parts["both"]["kv_share"] == document["heads"]["kv_share"] == 8 / 20
    for row in document["rows"]:
        assert list(row["ablation"]) == ["heads", "rows", "both"]
        assert row["ablation"]["both"] == {**row["redknot"], "ratio": row["ratio"]}
        assert len(row["ablation"]["rows"]["samples"]) == len(row["stock"]["samples"])
    shown = bench(*ROWS, "--ablation", "--rounds", "2").stdout
    assert "Rows skipped in prefill: 10.0% of attention, 40.0% of ffn." in shown
    assert "0.75 (1.00x)" in shown
    assert "With row skipping in prefill: no FFN from layer 2, no attention from layer 3" in shown


def test_rows_without_an_ablation_are_one_configuration(bench: Bench, tmp_path: Path) -> None:
    document = json.loads(bench(*ROWS, "--rounds", "1", "--json").stdout)
    assert diary(tmp_path) == ["stock", "REDKNOT"]
    assert document["ablation"] is None
    assert document["rows_skipped"] == {"attention": 0.1, "ffn": 0.4}
    assert all(row["ablation"] is None for row in document["rows"])


def test_a_folder_of_another_schedule_is_refused(bench: Bench) -> None:
    assert bench(*ROWS, "--rounds", "1").exit_code == 0
    assert "is of another measurement (row_schedule" in bench("--rounds", "1").stderr


def test_an_ablation_without_a_schedule_is_refused_before_a_server_starts(
    bench: Bench, tmp_path: Path
) -> None:
    assert "there is no schedule of rows: give --rows" in bench("--ablation").stderr
    assert not (tmp_path / "out").exists()


def test_nothing_in_a_document_is_a_path_of_this_machine(bench: Bench, tmp_path: Path) -> None:
    document = json.loads(bench("--json", "--rounds", "1").stdout)
    # The flags that the user gave are the user's.
    document["settings"]["serve_flags"] = []
    assert str(tmp_path) not in json.dumps(document)


def test_both_sides_take_turns_and_the_first_alternates(bench: Bench, tmp_path: Path) -> None:
    assert bench("--rounds", "3").exit_code == 0
    assert diary(tmp_path) == ["stock", "REDKNOT", "REDKNOT", "stock", "stock", "REDKNOT"]


def test_progress_goes_to_stderr_and_the_table_to_stdout(bench: Bench) -> None:
    result = bench("--rounds", "1")
    assert result.stderr.splitlines()[0] == "[1/6] round 1 of 1, stock: the server starts"
    assert result.stderr.splitlines()[-1] == "[6/6] round 1 of 1, redknot: prompt of 256 tokens, alone"
    assert "time to first token, s" in result.stdout
    assert "2.50x" in result.stdout


def test_a_finished_round_is_not_measured_again(bench: Bench, tmp_path: Path) -> None:
    first = json.loads(bench("--rounds", "1", "--json").stdout)
    kept = tmp_path / "out" / "rounds" / "1-stock.json"
    round_one = json.loads(kept.read_text())
    round_one["samples"]["ttft-3x64"] = [9.0, 9.0, 9.0]
    kept.write_text(json.dumps(round_one))
    second = json.loads(bench("--rounds", "2", "--json").stdout)
    assert diary(tmp_path) == ["stock", "REDKNOT", "REDKNOT", "stock"]
    assert first["rows"][0]["stock"]["samples"] == [0.5, 0.75, 1.0]
    assert second["rows"][0]["stock"]["samples"] == [9.0, 9.0, 9.0, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: f"[{len(text)}]", "is no result of a round"),
        (lambda text: text.replace('"stock"', '"redknot"'), "is of round 1, redknot"),
        (lambda text: text.replace('"plan": "', '"plan": "0'), "is of another measurement"),
        (lambda text: text.replace("0.75", "-1.0"), "samples.ttft-3x64.1"),
        (lambda text: text.replace("0.75", "NaN"), "samples.ttft-3x64.1"),
        (lambda text: text.replace("ttft-3x64", "ttft-3x65"), "not whole"),
    ],
)
def test_a_damaged_or_foreign_round_is_named_before_a_server_starts(
    bench: Bench, tmp_path: Path, damage: Callable[[str], str], named: str
) -> None:
    assert bench("--rounds", "1").exit_code == 0
    kept = tmp_path / "out" / "rounds" / "1-stock.json"
    kept.write_text(damage(kept.read_text()))
    result = bench("--rounds", "2")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert named in line
    assert "1-stock.json" in line
    assert "delete it" in line
    assert len(diary(tmp_path)) == 2


def test_a_folder_of_other_settings_is_refused(bench: Bench, tmp_path: Path) -> None:
    assert bench("--rounds", "1").exit_code == 0
    result = bench("--rounds", "1", "--window", "128")
    assert result.exit_code == 1
    assert "is of another measurement (heads.description is" in result.stderr
    assert len(diary(tmp_path)) == 2


def test_a_folder_of_other_lengths_is_refused(bench: Bench) -> None:
    assert bench("--rounds", "1").exit_code == 0
    assert "is of another measurement (workloads is" in bench("--rounds", "1", ttft="64").stderr


def test_a_folder_with_rounds_but_no_plan_is_refused(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "rounds"
    folder.mkdir(parents=True)
    (folder / "1-stock.json").write_text("{}")
    assert "'1-stock.json' but no plan.json" in bench().stderr


def test_two_measurements_never_share_a_folder(bench: Bench, tmp_path: Path) -> None:
    assert bench("--rounds", "1").exit_code == 0
    with (tmp_path / "out" / "rounds" / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another `redknot bench` measures in" in bench("--rounds", "2").stderr
    assert bench("--rounds", "1").exit_code == 0


def test_a_server_that_does_not_start_shows_the_end_of_its_log(bench: Bench, tmp_path: Path) -> None:
    result = bench(flags="--die")
    assert result.exit_code == 1
    *log, line = result.stderr.splitlines()[1:]
    assert log[-1] == "  | ?[31mout of luck"
    assert len(log) == 20
    assert "ended with status 3 before it was ready" in line
    assert str(tmp_path / "out" / "rounds" / "1-stock.log") in line


def test_a_server_that_is_never_ready_is_given_up(bench: Bench) -> None:
    result = bench("--start-timeout", "1", flags="--never-ready")
    assert result.exit_code == 1
    assert "was not ready after 1 s" in result.stderr


def test_a_port_that_somebody_takes_meanwhile_is_no_failure(bench: Bench, tmp_path: Path) -> None:
    assert bench("--rounds", "1", flags=f"--port-taken-once {tmp_path / 'taken'}").exit_code == 0
    assert diary(tmp_path) == ["stock", "stock", "REDKNOT"]


@pytest.mark.parametrize(
    ("length", "named"),
    [
        (stand_in_vllm.MISSING_MODULE, "pip install 'vllm[bench]'"),
        (stand_in_vllm.FAILED_REQUESTS, "1 of 3 requests failed (ConnectionError: gone)"),
        (stand_in_vllm.NO_RESULT, "is not as expected, completed"),
    ],
)
def test_a_client_that_fails_is_one_line(bench: Bench, length: int, named: str) -> None:
    result = bench(ttft=str(length))
    assert result.exit_code == 1
    assert named in result.stderr.splitlines()[-1]


def test_requests_that_never_decode_together_are_refused(bench: Bench) -> None:
    result = bench("--only", "itl", "--long", f"2x{stand_in_vllm.NEVER_TOGETHER}")
    assert result.exit_code == 1
    assert "no moment at which all of them decoded" in result.stderr


def test_without_vllm_the_remedy_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module.importlib.util, "find_spec", {}.get)
    assert "vLLM is not installed: pip install" in bench().stderr


def test_memory_that_does_not_suffice_is_foreseen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    monkeypatch.setattr(machine, "available_bytes", lambda: 2**30)
    result = bench()
    assert result.exit_code == 1
    assert "a server needs about 2.1 GiB" in result.stderr
    assert "1.0 GiB are free" in result.stderr
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    assert bench("--rounds", "1").exit_code == 0


def test_a_cache_without_room_for_one_request_is_refused_before_a_server_starts(
    bench: Bench, tmp_path: Path
) -> None:
    result = bench("--kv-bytes", str(LEAST - 1))
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert f"--kv-bytes is {LEAST - 1} (32.06 MiB): to serve one request of 16384 tokens" in line
    assert f"stock vLLM needs {LEAST} bytes and REDKNOT " in line
    assert f"give at least {LEAST} (32.06 MiB), or a smaller --max-model-len" in line
    assert not (tmp_path / "out").exists()
    ours = int(line.partition("REDKNOT ")[2].partition(":")[0])
    assert LEAST / 5 < ours < LEAST / 2
    assert bench("--kv-bytes", str(LEAST), "--rounds", "1").exit_code == 0


def test_a_cache_that_further_flags_make_suffice_is_not_refused(bench: Bench) -> None:
    flags = "--pipeline_parallel_size=2"
    assert bench("--kv-bytes", str(LEAST // 2), "--rounds", "1", flags=flags).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--long", "8"), "'8' is no number of requests"),
        (("--long", "0x64"), "'0x64' is no number of requests"),
        (("--long", "8xmany"), "'many' is no number of tokens"),
        (("--block-size", "24"), "--block-size is 24"),
        (("--serve-flags", "'open"), "No closing quotation"),
        (("--max-model-len", "128"), "do not fit a context of 128"),
        (("--only", "joy"), "joy"),
    ],
)
def test_wrong_usage_is_named(bench: Bench, tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_hold_results_is_told_before_a_server_starts(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "out" / "bench.json").mkdir(parents=True)
    result = bench()
    assert result.exit_code == 1
    assert f"{tmp_path / 'out' / 'bench.json'} is a folder, and a file is to be there" in result.stderr
    assert not (tmp_path / "diary").exists()


def is_alive(process: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    stat = Path(f"/proc/{process}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_servers_and_says_what_is_kept(
    write_model: WriteModel, heads_file: Path, tmp_path: Path, number: signal.Signals
) -> None:
    code = f"""
import sys
from functools import partial
from vllm_redknot.benchmarking.run import Measurement
from vllm_redknot.cli.commands import bench
from vllm_redknot.cli.main import app
bench.Measurement = partial(Measurement, command=(sys.executable, {STAND_IN!r}))
bench.importlib.util.find_spec = lambda name: name
app(sys.argv[1:])
"""
    arguments: list[Any] = [
        "bench",
        write_model(),
        "--heads",
        heads_file,
        "-o",
        tmp_path / "out",
        "--only",
        "ttft",
    ]
    arguments += [
        "--ttft",
        stand_in_vllm.ASLEEP,
        "--kv-bytes",
        "33MiB",
        "--serve-flags",
        f"--diary {tmp_path / 'diary'}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    # The second step is the client's, which sleeps.
    lines = [process.stderr.readline() for _ in range(2)]
    assert lines[1].startswith("[2/"), lines
    time.sleep(0.5)
    server = int((tmp_path / "diary").read_text().split()[1])
    assert is_alive(server)
    os.kill(process.pid, number)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in rest
    assert not is_alive(server)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_bench_explains_itself_at_any_width(redknot: Run, width: int) -> None:
    result = redknot("bench", "--help", width=width)
    assert result.exit_code == 0
    assert "Usage: redknot bench" in result.stdout
    assert "Example" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= width
