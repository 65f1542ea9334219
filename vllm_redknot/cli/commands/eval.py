"""`redknot eval`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vllm_redknot.cli import options
from vllm_redknot.cli.app import console, emit_json, warn
from vllm_redknot.cli.commands.plan import Dtype
from vllm_redknot.cli.configurations import configurations
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.eval_engines import EngineOptions, engine_arguments, engines, require_vllm
from vllm_redknot.cli.eval_tables import show_document
from vllm_redknot.cli.output_paths import check_folder
from vllm_redknot.cli.progress import engine_bars
from vllm_redknot.cli.target import Target, settings, target_of_model
from vllm_redknot.cli.tokenizer_file import read_tokenizer
from vllm_redknot.cli.units import parse_token_list, parse_tokens
from vllm_redknot.evals.answer_file import AnswerFileError
from vllm_redknot.evals.engine_process import EngineError
from vllm_redknot.evals.requests import Request
from vllm_redknot.evals.run import ENGINES, STOCK, Answered, Engine, Told, answer_all, answers_path, log_path
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.whole_file import write_document

if TYPE_CHECKING:
    from vllm_redknot.evals.suites import Cases, Choices

DOCUMENT: Final = "eval.json"
LENGTHS: Final = (1024, 2048, 4096, 8192, 16384, 32768)


class SuiteChoice(StrEnum):
    """What is asked."""

    FIDELITY = "fidelity"
    NEEDLE = "needle"
    QA = "qa"
    ALL = "all"


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model's folder, with tokenizer.json and weights.")
    ],
    heads: options.Heads = None,
    window: options.Window = None,
    sink: options.Sink = None,
    dense_prefix_layers: options.DensePrefix = None,
    duo_threshold: options.DuoThreshold = None,
    rows: options.Rows = None,
    ablation: options.Ablation = False,
    suite: Annotated[SuiteChoice, typer.Option(help="What is asked.")] = SuiteChoice.ALL,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Prompt lengths in tokens.",
            show_default="1K,2K,4K,... as far as the model goes, up to 32K",
        ),
    ] = None,
    depths: Annotated[
        str, typer.Option(metavar="LIST", help="Depths of single needles, 0 the start and 1 the end.")
    ] = "0.1,0.3,0.5,0.7,0.9",
    beyond_window: Annotated[
        bool,
        typer.Option(
            help="Take depths of the text that lies farther back than the largest local window, where a length"
            " has enough of it."
        ),
    ] = True,
    beyond: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            parser=parse_tokens,
            help="Instead: of the text that lies farther back than this, so that profiles of other windows are asked"
            " the same questions.",
            show_default="the largest local window",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=options.MOST_TEXTS, metavar="N", help="Needle texts per length and depth."),
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Draws texts and resamples.")] = 0,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Most cases per task and length.",
            show_default="8 essays, 50 questions, all needles",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="The run's folder: eval.json, answers so far, logs.")
    ] = Path("redknot-eval"),
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw the answers in --output away and begin anew.")
    ] = False,
    max_model_len: Annotated[
        int | None, options.max_model_len("Passed on to vLLM.", "the longest length and room to answer")
    ] = None,
    kv_bytes: Annotated[
        int | None, options.kv_bytes("Passed on to vLLM.", "twice what stock needs for one request")
    ] = None,
    batched_tokens: Annotated[
        int,
        typer.Option(
            "--max-num-batched-tokens",
            "--batched-tokens",
            metavar="TOKENS",
            parser=parse_tokens,
            help="Passed on to vLLM: tokens of a step. Scoring essays needs their logits at once.",
        ),
    ] = "512",  # type: ignore[assignment]
    block_size: options.BlockSize = 32,
    dtype: Annotated[Dtype, typer.Option(help="Passed on to vLLM.")] = Dtype.AUTO,
    tp: options.TensorParallel = 1,
    enforce_eager: Annotated[
        bool, typer.Option(help="Passed on to vLLM; without it all engines are compiled.")
    ] = True,
    json: options.Json = False,
) -> None:
    """Say what head classes and row skipping cost: stock vLLM and REDKNOT on the same tokens, with intervals.

    **fidelity**: NLL of held-out essays, divergence and top-1 agreement. **needle**: passcodes at every length and
    depth, alone and among four named ones. **qa**: SQuAD and HotpotQA among distractor paragraphs. Each cell has n,
    both values, the paired difference, and whether that is noise. The engines run one after the other; --ablation adds
    two, to tell what head classes cost from what row skipping costs. A run that was interrupted goes on when the same
    command is given again.

    Examples:

      redknot eval ~/models/Qwen3-4B --heads heads.json --suite needle --lengths 4K,16K --output runs/needle

      redknot eval ~/models/SmolLM2-135M-Instruct --limit 10 --json > eval.json
    """
    require_vllm()
    options.check_block_size(block_size)
    config = settings(
        heads=heads,
        window=window,
        sink=sink,
        dense_prefix_layers=dense_prefix_layers,
        duo_threshold=duo_threshold,
        rows=rows,
    )
    asked = None if lengths is None else parse_token_list(lengths, "--lengths")
    parsed_depths = _parse_depths(depths)
    check_folder(output, "--output", DOCUMENT)
    target = target_of_model(model, config)
    compared = configurations(target, config, ablation)
    assert target.model is not None
    if target.model.refused:
        raise CliError(
            f"{model}: REDKNOT does not serve {', '.join(target.model.refused)}: nothing to compare"
        )
    for warning in target.warnings:
        warn(warning)
    if asked is None:
        asked = default_lengths(max_model_len or target.model.max_context)
    # numpy and tokenizers come with vLLM, not with the command.
    from vllm_redknot.cli.eval_document import eval_document, identity
    from vllm_redknot.evals.fidelity import TOP
    from vllm_redknot.evals.suites import SUITES, Choices, suite_scores

    chosen = Choices(
        suites=tuple(name for name in SUITES if suite in (SuiteChoice.ALL, name)),
        lengths=tuple(asked),
        depths=parsed_depths,
        seeds=seeds,
        seed=seed,
        window=(beyond or _largest_window(target.profile)) if beyond_window else None,
        limit=limit,
    )
    engine_options = EngineOptions(
        max_model_len, kv_bytes, batched_tokens, block_size, dtype.value, tp, enforce_eager
    )
    arguments = engine_arguments(target.model, engine_options, max(asked), TOP)
    identified = identity(target.model, chosen)
    cases = _cases(target, chosen)
    requests = [case.request for case in cases.cases]
    output.mkdir(parents=True, exist_ok=True)
    if restart:
        _forget(output)
    with engine_bars() as told:
        stock, *ours = (
            _answer(engine, requests, output, told) for engine in engines(arguments, compared, identified)
        )
    scores = [suite_scores(cases.cases, stock.answers, found.answers) for found in ours]
    compared_scores = list(zip(compared, ours, scores, strict=True))
    document = eval_document(
        target, chosen, identified, arguments, stock, compared_scores, cases.beyond_window
    )
    write_document(output / DOCUMENT, document)
    if json:
        emit_json(document)
        return
    show_document(console(), document)


def default_lengths(longest: int | None) -> list[int]:
    """Powers of two from 1K up to 32K that a context of `longest` tokens has room for besides an answer."""
    fitting = [length for length in LENGTHS if longest is None or length < longest]
    if not fitting:
        raise typer.BadParameter(f"the model's context is {longest} tokens: give shorter --lengths")
    return fitting


def _parse_depths(text: str) -> tuple[float, ...]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 <= depth <= 1 for depth in found):
        raise typer.BadParameter(f"--depths is {text!r}: give numbers from 0 to 1, such as 0.1,0.5,0.9")
    return tuple(found)


def _largest_window(profile: HeadProfile) -> int | None:
    windows = [
        seen
        for layer in profile.layer_ids
        for head in range(profile.num_kv_heads)
        if (seen := profile.visibility(layer, head).window) is not None
    ]
    return max(windows, default=None)


def _cases(target: Target, choices: Choices) -> Cases:
    from vllm_redknot.evals.suites import build_cases

    assert target.model is not None
    tokenizer = read_tokenizer(target.model.path)
    try:
        return build_cases(tokenizer, choices)
    except ValueError as error:
        raise CliError(f"{error}: give other --lengths") from error


def _answer(engine: Engine, requests: Sequence[Request], folder: Path, told: Told) -> Answered:
    try:
        return answer_all(engine, requests, folder, told)
    except (AnswerFileError, EngineError) as error:
        raise CliError(str(error)) from error
    except KeyboardInterrupt:
        warn("what was answered is kept: the same command goes on from there")
        raise


def _forget(folder: Path) -> None:
    for engine in (STOCK, *ENGINES.values()):
        answers_path(folder, engine).unlink(missing_ok=True)
        log_path(folder, engine).unlink(missing_ok=True)
    (folder / DOCUMENT).unlink(missing_ok=True)
