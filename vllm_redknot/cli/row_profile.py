"""`redknot profile --rows`: a schedule of row skipping for head classes that are there."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vllm_redknot.cli.app import console, emit_json, print_table, warn
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.profile_run import Loaded, Where, run_with_model
from vllm_redknot.cli.target import Target, settings, target_of_model
from vllm_redknot.cli.units import show_bytes
from vllm_redknot.evals.fingerprints import model_fingerprint, versions
from vllm_redknot.evals.memory import available_bytes
from vllm_redknot.heads import native
from vllm_redknot.whole_file import write_document

if TYPE_CHECKING:
    from vllm_redknot.profiler.row_judge import RowLimits
    from vllm_redknot.profiler.row_run import RowOutcome, RowPlan

ELEMENT_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
ROOM: Final = 300
"""Tokens beside `recent` that a text needs, so that most of it may skip."""


def check_options(rows: bool, given: Callable[[str], bool]) -> None:
    """Refuse options of the other kind of run.

    Args:
        rows: whether --rows was given.
        given: whether a parameter of the command was.
    """
    heads_only = ("kv_share", "global_fraction", "windows", "essay_weight")
    rows_only = ("heads", "recent", "max_kl", "predictors")
    for name in filter(given, heads_only if rows else rows_only):
        option = f"--{name.replace('_', '-')}"
        if rows:
            raise CliError(
                f"--rows keeps the head classes there are, and {option} chooses new ones: make them first, without"
                " --rows, then give the file with --rows --heads FILE"
            )
        raise CliError(f"{option} is for --rows: give both or neither")


@dataclass(frozen=True)
class RowOptions:
    """What `--rows` was asked with, as values."""

    heads: str | None
    plan: RowPlan
    limits: RowLimits
    context: int
    data: Path | None
    force: bool
    json: bool


def calibrate_rows(where: Where, options: RowOptions) -> None:
    """Search, check, write. Raises CliError where nothing holds, or the check fails without --force."""
    target = target_of_model(where.file.path, settings(heads=options.heads))
    for warning in target.warnings:
        warn(warning)
    if where.file.shape.intermediate_size is None:
        raise CliError(f"{where.file.path}: no intermediate_size: what its FFN costs is not known")
    _check_lengths(where, options.plan)
    if where.device == "cpu":
        _check_memory(where, options.plan)
    outcome = _run(where, target, options)
    _finish(outcome, where, target, options)


def _check_lengths(where: Where, plan: RowPlan) -> None:
    lengths = (*plan.lengths, *plan.judged_lengths)
    longest = where.file.max_context
    if longest is not None and max(lengths) > longest:
        raise CliError(f"{max(lengths)} tokens are more than the model's {longest}: give shorter lengths")
    needed = max(plan.recents) + plan.sink + ROOM
    if min(lengths) < needed:
        raise CliError(
            f"texts of {min(lengths)} tokens leave a `recent` of {max(plan.recents)} little to skip: give at least"
            f" {needed}"
        )


def _check_memory(where: Where, plan: RowPlan) -> None:
    from vllm_redknot.profiler.memory import row_run_bytes

    needed = row_run_bytes(
        where.file.shape,
        where.file.weight_bytes,
        plan.lengths,
        plan.texts,
        ELEMENT_BYTES[where.dtype],
        plan.predictors,
    )
    free = available_bytes()
    if free is not None and needed > free:
        raise CliError(
            f"{plan.texts} texts of each task at {max(plan.lengths)} tokens need about {show_bytes(needed)}, and"
            f" {show_bytes(free)} are free: give fewer --texts, shorter --lengths, or another --device"
        )


def _run(where: Where, target: Target, options: RowOptions) -> RowOutcome:
    from vllm_redknot.profiler.row_run import RowRun

    plan, heads = options.plan, target.profile
    header = {"rows": plan.header(), "heads": heads.fingerprint()}

    def work(loaded: Loaded) -> RowOutcome:
        bar = loaded.bar
        task = bar.add_task("searching", total=None)
        run = RowRun(
            loaded.model,
            heads,
            where.file.shape,
            loaded.tokenizer,
            plan,
            loaded.journal,
            lambda: bar.advance(task),
        )
        schedule, tried = run.choose(options.limits, options.context)
        if schedule is None:
            raise CliError(
                f"{where.output} is not written: every schedule of row skipping breaks a limit on the calibration"
                f" texts, even the last layer's FFN ({'; '.join(tried[-1].verdict.failures)}): leave it off, or allow"
                " more with --max-nll-increase, --max-kl or --needle-recall"
            )
        bar.reset(task, description="checking on held-out texts", total=3 * plan.judged_cases)
        return run.verify(schedule, tried, options.limits, options.context)

    return run_with_model(where, header, work)


def _finish(outcome: RowOutcome, where: Where, target: Target, options: RowOptions) -> None:
    from vllm_redknot.profiler.row_document import evidence, with_rows

    plan, limits, output = options.plan, options.limits, where.output
    source = "essays" if options.data is None else options.data.name
    made = with_rows(
        outcome,
        target.profile,
        target.profile.identity or where.file.shape.identity(where.file.path.name),
        plan,
        limits,
        f"needles and named needles in {source}",
        datetime.datetime.now(datetime.UTC).date().isoformat(),
        versions(),
    )
    model = {"name": where.file.path.name, "fingerprint": model_fingerprint(where.file.path)}
    document: dict[str, Any] = evidence(outcome, target.profile, model, plan, limits, versions())
    failures = outcome.verdict.failures
    written = not failures or options.force
    if written:
        native.write(made, output)
        write_document(output.with_name(output.name + ".evidence.json"), document)
    if options.json:
        emit_json({**document, "written": str(output) if written else None})
    else:
        _show(outcome, target, document)
    for failure in failures:
        warn(f"the schedule fails its check: {failure}")
    if not written:
        raise CliError(
            f"{output} is not written: allow more, calibrate on more --texts, or --force to have it as it is"
        )
    if not options.json:
        console().print(f"{output}", soft_wrap=True)


def _show(outcome: RowOutcome, target: Target, document: Mapping[str, Any]) -> None:
    out = console()
    out.print(f"head classes: {target.origin}", soft_wrap=True)
    out.print(outcome.schedule.describe(), soft_wrap=True)
    saved = outcome.savings
    out.print(
        f"skips {saved.attention_rows:.1%} of the attention rows and {saved.ffn_rows:.1%} of the FFN rows of a prompt"
        f" of {saved.context} tokens: {saved.flops:.1%} of the FLOPs that the head classes leave"
        f" ({saved.flops_of_dense:.1%} of dense saved by both); {len(outcome.tried)} schedules tried",
        soft_wrap=True,
    )
    rows = [
        [
            row["task"],
            str(row["length"]),
            str(row["n"]),
            *(
                ["", "", ""]
                if row["task"] == "essays"
                else [str(row[key]) for key in ("dense_found", "heads_found", "found")]
            ),
            *(f"{row[key]:.3f}" for key in ("dense_nll", "heads_nll", "nll", "kl")),
        ]
        for row in document["verification"]["comparisons"]
    ]
    columns = (
        "held out",
        "tokens",
        "n",
        "dense found",
        "heads",
        "+ rows",
        "dense NLL",
        "heads",
        "+ rows",
        "KL",
    )
    print_table(out, columns, rows)
