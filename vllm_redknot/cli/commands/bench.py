"""`redknot bench`."""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from vllm_redknot.benchmarking.document import bench_document, dumps
from vllm_redknot.benchmarking.errors import BenchmarkError
from vllm_redknot.benchmarking.machine import check_host_memory, described_machine
from vllm_redknot.benchmarking.run import Measurement, measure
from vllm_redknot.benchmarking.store import Store
from vllm_redknot.benchmarking.workloads import Crowd, Metric, Wanted, workloads
from vllm_redknot.cli import options
from vllm_redknot.cli.app import console, emit_json, printable, warn
from vllm_redknot.cli.bench_servers import Common, Servers, servers
from vllm_redknot.cli.bench_tables import show_document
from vllm_redknot.cli.configurations import Configuration, configurations
from vllm_redknot.cli.diagnosis.installation import INSTALL, versions
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.model_file import CONFIG_NAME, ModelFile
from vllm_redknot.cli.output_paths import check_folder
from vllm_redknot.cli.progress import steps
from vllm_redknot.cli.target import Target, settings, target_of_model
from vllm_redknot.cli.units import parse_token_list, parse_tokens
from vllm_redknot.whole_file import write_whole

MOST_CONTEXT = 32 * 1024
"""Tokens of a longest request, unless asked otherwise."""
ROUNDS, QUICK_ROUNDS = 3, 1
DOCUMENT = "bench.json"
MOST_REQUESTS = 4096


def parse_crowd(text: str) -> Crowd:
    """`32x64` or `8x6K`: requests, and the prompt tokens of each. Raises typer.BadParameter."""
    requests, cross, tokens = text.partition("x")
    if not cross or not requests.isdecimal() or not 1 <= int(requests[:9]) <= MOST_REQUESTS:
        raise typer.BadParameter(
            f"{text!r} is no number of requests (1 to {MOST_REQUESTS}) and of prompt tokens: give one such as 8x4K"
        )
    return Crowd(int(requests), parse_tokens(tokens))


def bench(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model's folder, with weights and tokenizer.")
    ],
    heads: options.Heads = None,
    window: options.Window = None,
    sink: options.Sink = None,
    dense_prefix_layers: options.DensePrefix = None,
    duo_threshold: options.DuoThreshold = None,
    rows: options.Rows = None,
    ablation: options.Ablation = False,
    max_groups: options.MaxGroups = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for bench.json and what it is made of."),
    ] = Path("redknot-bench"),
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1, max=100, metavar="N", help="Turns of all servers.", show_default="3, or 1 with --quick"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short prompts, few requests, one round.")] = False,
    only: Annotated[
        list[Metric] | None,
        typer.Option(help="What to measure; may be given several times.", show_default="all"),
    ] = None,
    ttft: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Prompt lengths for the time to first token of one client.",
            show_default="1/16, 1/4 and 15/16 of the longest",
        ),
    ] = None,
    short: Annotated[
        Crowd | None,
        typer.Option(
            metavar="NxTOKENS",
            parser=parse_crowd,
            help="Short requests that decode at once.",
            show_default="32x64",
        ),
    ] = None,
    long: Annotated[
        Crowd | None,
        typer.Option(
            metavar="NxTOKENS",
            parser=parse_crowd,
            help="Long requests that decode at once.",
            show_default="8 of 3/4 of the longest",
        ),
    ] = None,
    throughput: Annotated[
        Crowd | None,
        typer.Option(
            metavar="NxTOKENS",
            parser=parse_crowd,
            help="Requests for the throughput.",
            show_default="32 of half of the longest",
        ),
    ] = None,
    max_model_len: Annotated[
        int | None, options.max_model_len("The longest request.", "the model's, at most 32K")
    ] = None,
    kv_bytes: Annotated[
        int | None,
        options.kv_bytes("KV cache of each server, of one GPU.", "8 longest requests of stock vLLM"),
    ] = None,
    batched_tokens: options.BatchedTokens = "2K",  # type: ignore[assignment]
    block_size: options.BlockSize = 32,
    tp: options.TensorParallel = 1,
    enforce_eager: Annotated[
        bool, typer.Option("--enforce-eager", help="vLLM's --enforce-eager: quicker starts.")
    ] = False,
    serve_flags: Annotated[
        str,
        typer.Option(metavar="FLAGS", help="Further flags of `vllm serve` for all, in one pair of quotes."),
    ] = "",
    start_timeout: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="How long a server may take to be ready.")
    ] = 900.0,
    json: options.Json = False,
) -> None:
    """Measure latency, throughput and KV memory against stock vLLM, on this machine, in one run.

    Starts `vllm serve` of either kind in turns on the loopback address and asks it with vLLM's own client, `vllm
    bench serve`; --ablation adds two kinds, to tell what head classes gain from what row skipping gains. Figures are
    medians over all rounds. A run that was interrupted goes on where it was: what a server gave is a file in
    DIR/rounds, beside its log.

    Examples:

      redknot bench ~/models/Qwen3-8B --heads heads.json -o results

      redknot bench ~/models/SmolLM2-135M-Instruct --quick --enforce-eager --only ttft --ttft 512,2K
    """
    options.check_block_size(block_size)
    lengths = None if ttft is None else parse_token_list(ttft, "--ttft")
    config = settings(
        heads=options.absolute_heads(heads),
        window=window,
        sink=sink,
        dense_prefix_layers=dense_prefix_layers,
        duo_threshold=duo_threshold,
        max_groups=max_groups,
        rows=rows,
    )
    check_folder(output, "--output", DOCUMENT)
    target = target_of_model(model, config)
    compared = configurations(target, config, ablation)
    described = target.model
    assert described is not None
    context = max_model_len or min(described.max_context or MOST_CONTEXT, MOST_CONTEXT)
    further = _split(serve_flags)
    common = Common(context, kv_bytes, batched_tokens, block_size, tp, enforce_eager, further)
    started = servers(compared, described, common)
    try:
        wanted = Wanted(lengths, short, long, throughput)
        asked = workloads(wanted, context, batched_tokens, quick, only or tuple(Metric))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    for warning in target.warnings:
        warn(warning)
    measurement = Measurement(
        model=model.expanduser().absolute(),
        flags=started.flags,
        workloads=asked,
        rounds=rounds or (QUICK_ROUNDS if quick else ROUNDS),
        start_timeout=start_timeout,
    )
    header = _header(target, described, compared, started)
    document = _run(measurement, header, started, described, output, context)
    write_whole(output / DOCUMENT, dumps(document))
    if json:
        emit_json(document)
        return
    show_document(console(), document)
    console().print(f"{output / DOCUMENT}", soft_wrap=True)


def _split(flags: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(flags))
    except ValueError as error:
        raise typer.BadParameter(f"--serve-flags is {flags!r}: {error}") from error


def _header(
    target: Target, model: ModelFile, compared: Sequence[Configuration], started: Servers
) -> dict[str, Any]:
    """What the document says besides its rows; files by name, for results are shown to others."""
    whole = compared[-1]
    parts = {one.label: one.described() for one in compared}
    return {
        "model": model.path.absolute().name,
        "heads": {
            "origin": target.origin.rpartition("/")[2],
            "description": target.profile.describe(),
            "fingerprint": target.profile.fingerprint(),
        },
        "row_schedule": whole.described()["row_schedule"],
        "ablation": parts if len(parts) > 1 else None,
        "machine": described_machine(),
        "versions": versions(),
        "settings": {
            "serve_flags": list(started.common_flags),
            "redknot": {key: value for key, value in whole.section.items() if key != "heads"},
            "kv_bytes": started.kv_bytes,
        },
    }


def _run(
    measurement: Measurement,
    header: Mapping[str, Any],
    started: Servers,
    model: ModelFile,
    output: Path,
    context: int,
) -> dict[str, Any]:
    """The document, after all rounds. Raises CliError; the end of a server's log is on stderr by then."""
    config_hash = hashlib.sha256((measurement.model / CONFIG_NAME).read_bytes()).hexdigest()
    plan = {
        **header,
        "model_config_sha256": config_hash,
        "weight_bytes": model.weight_bytes,
        "workloads": [asdict(workload) for workload in measurement.workloads],
    }
    try:
        with closing(Store(output, plan)) as store, _ended_by_signals(), steps(measurement.steps) as say:
            found = measure(measurement, store, say, lambda: _check(started, model))
    except BenchmarkError as error:
        _fail(error)
    except KeyboardInterrupt:
        typer.echo(
            f"redknot: servers stopped; what is measured stays in {printable(str(output))}, and the same command"
            " goes on from there",
            err=True,
        )
        raise
    return bench_document(header, measurement.workloads, found, context, started.kv_bytes)


def _check(started: Servers, model: ModelFile) -> None:
    """What can be known before a server starts."""
    if importlib.util.find_spec("vllm") is None:
        raise BenchmarkError(f"vLLM is not installed: {INSTALL}")
    check_host_memory(started.kv_bytes, model.weight_bytes)


def _fail(error: BenchmarkError) -> NoReturn:
    for line in error.log:
        typer.echo(f"  | {printable(line)}", err=True)
    raise CliError(str(error)) from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end us as Ctrl-C does, servers first."""

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
