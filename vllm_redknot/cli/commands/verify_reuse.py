"""`redknot verify-reuse`: the quality gate of KV reuse."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from vllm_redknot.cli import options
from vllm_redknot.cli.app import console, emit_json, warn
from vllm_redknot.cli.commands.plan import Dtype
from vllm_redknot.cli.configurations import row_schedule
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.eval_engines import EngineOptions, engine_arguments, require_vllm
from vllm_redknot.cli.output_paths import check_file, check_folder
from vllm_redknot.cli.progress import engine_bars
from vllm_redknot.cli.reuse_engine import NAME, check_variables, reuse_engine
from vllm_redknot.cli.reuse_tables import show_verification
from vllm_redknot.cli.target import Target, settings, target_of_model
from vllm_redknot.cli.tokenizer_file import read_tokenizer
from vllm_redknot.cli.units import parse_tokens
from vllm_redknot.config import DEFAULT_BOUNDARY
from vllm_redknot.evals.answer_file import AnswerFileError
from vllm_redknot.evals.engine_process import EngineError
from vllm_redknot.evals.requests import Request
from vllm_redknot.evals.run import Answered, Engine, answer_all, answers_path, log_path
from vllm_redknot.reuse.receipt import receipt_path
from vllm_redknot.whole_file import write_document

if TYPE_CHECKING:
    from vllm_redknot.evals.reuse_cases import ReuseCase, ReuseChoices

DOCUMENT: Final = "verify-reuse.json"
WORKER: Final = ("-m", "vllm_redknot.evals.reuse_worker")
FULL: Final = {"documents": 4, "document_tokens": 400, "texts": 6, "questions": 50, "length": 1024}
QUICK: Final = {"documents": 4, "document_tokens": 200, "texts": 2, "questions": 6, "length": 600}
FEWEST: Final = 6
"""Cases of a task: fewer fall on one side by chance too often."""


def verify_reuse(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model's folder, with tokenizer.json and weights.")
    ],
    heads: options.Heads = None,
    window: options.Window = None,
    sink: options.Sink = None,
    dense_prefix_layers: options.DensePrefix = None,
    duo_threshold: options.DuoThreshold = None,
    rows: options.Rows = None,
    boundary: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Tokens recomputed at the start of each moved document.",
            show_default=str(DEFAULT_BOUNDARY),
        ),
    ] = None,
    policy: Annotated[
        options.Policy | None,
        typer.Option(help="Which tokens of moved documents are recomputed.", show_default="boundary"),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Of moved documents, for --policy blend.", show_default="0.15"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Where the receipt goes: a folder, or a file that ends in .json.",
            show_default="the model's folder, or the cache where that cannot be written",
        ),
    ] = None,
    run: Annotated[
        Path, typer.Option(metavar="DIR", help=f"The run's folder: {DOCUMENT}, answers so far, log.")
    ] = Path("redknot-verify-reuse"),
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw the answers in --run away and begin anew.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few, short cases: a first look, and a receipt of few cases.")
    ] = False,
    documents: Annotated[
        int | None,
        typer.Option(
            min=2, max=16, metavar="N", help="Documents of a prompt with passcodes.", show_default="4"
        ),
    ] = None,
    document_tokens: Annotated[
        int | None,
        typer.Option(min=100, metavar="N", help="Tokens of each of them.", show_default="400; quick: 200"),
    ] = None,
    texts: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=options.MOST_TEXTS,
            metavar="N",
            help="Prompts with passcodes; in each, the document that tells stands at every place in turn.",
            show_default="6; quick: 2",
        ),
    ] = None,
    questions: Annotated[
        int | None,
        typer.Option(
            min=FEWEST, metavar="N", help="Questions of each data set.", show_default="50; quick: 6"
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            parser=parse_tokens,
            help="Most tokens of a prompt with a question.",
            show_default="1K; quick: 600",
        ),
    ] = None,
    needle_recall: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Budget: of the needles that dense finds.")
    ] = 0.95,
    max_nll_increase: Annotated[
        float,
        typer.Option(
            min=0, max=options.LARGEST, metavar="NATS", help="Budget: per token of a passcode, above dense."
        ),
    ] = 0.05,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Draws texts and resamples.")] = 0,
    kv_bytes: Annotated[
        int | None, options.kv_bytes("Passed on to vLLM.", "twice what stock needs for one request")
    ] = None,
    batched_tokens: options.BatchedTokens = "512",  # type: ignore[assignment]
    block_size: options.BlockSize = 32,
    dtype: Annotated[
        Dtype, typer.Option(help="Passed on to vLLM; the receipt is for this one.")
    ] = Dtype.AUTO,
    enforce_eager: Annotated[
        bool, typer.Option(help="Passed on to vLLM; without it the engine is compiled.")
    ] = True,
    json: options.Json = False,
) -> None:
    """Say whether a model's answers bear KV reuse, and write the receipt that `"reuse": "on"` needs.

    One engine answers held-out prompts twice: with everything computed, and with their documents stored alone before
    and taken from the store in another order. **needle**, **named**: passcodes, by place of the document that tells.
    **squad**, **hotpotqa**: questions, each paragraph a document. Where the budget is not kept there is no receipt, and
    the exit status is 1. A run that was interrupted goes on when the same command is given again.

    Examples:

      redknot verify-reuse ~/models/SmolLM2-135M-Instruct --quick

      redknot verify-reuse ~/models/Qwen3-4B --heads heads.json --questions 200 --output receipts/qwen3.json
    """
    require_vllm("verify-reuse asks one of its engines")
    options.check_block_size(block_size)
    config = settings(
        heads=heads,
        window=window,
        sink=sink,
        dense_prefix_layers=dense_prefix_layers,
        duo_threshold=duo_threshold,
        rows=rows,
        boundary=boundary,
        policy=None if policy is None else policy.value,
        share=share,
    )
    is_blend = config.policy == options.Policy.BLEND.value
    if (share is not None and not is_blend) or (boundary is not None and is_blend):
        raise typer.BadParameter("--share is for --policy blend, --boundary for the other: give one of them")
    if is_blend and not enforce_eager:
        raise typer.BadParameter("--policy blend needs --enforce-eager")
    check_variables(config)
    check_folder(run, "--run", DOCUMENT)
    if output is not None:
        check_file(receipt_path(output), "--output")
    target = target_of_model(model, config)
    assert target.model is not None
    if target.model.refused:
        raise CliError(f"{model}: REDKNOT does not serve {', '.join(target.model.refused)}")
    for warning in target.warnings:
        warn(warning)
    # One that the model cannot have is told before anything is started.
    row_schedule(target, config)
    # numpy and tokenizers come with vLLM, not with the command.
    from vllm_redknot.cli.reuse_document import Result, place_receipt, verification
    from vllm_redknot.evals.fidelity import TOP
    from vllm_redknot.evals.reuse_cases import ReuseChoices
    from vllm_redknot.evals.reuse_verdict import Limits

    given = {
        "documents": documents,
        "document_tokens": document_tokens,
        "texts": texts,
        "questions": questions,
        "length": length,
    }
    asked = {
        **(QUICK if quick else FULL),
        **{key: value for key, value in given.items() if value is not None},
    }
    choices = ReuseChoices(
        0 if is_blend else config.boundary, **asked, seed=seed, share=config.share if is_blend else None
    )
    if choices.texts * min(choices.documents, 4) < FEWEST:
        raise typer.BadParameter(
            f"--texts {choices.texts} with --documents {choices.documents} are fewer than {FEWEST} cases: give more"
        )
    engine_options = EngineOptions(
        None, kv_bytes, batched_tokens, block_size, dtype.value, tp_size=1, enforce_eager=enforce_eager
    )
    longest = max(choices.length, choices.documents * choices.document_tokens + 64)
    arguments = engine_arguments(
        target.model, engine_options, longest, TOP, "--length or --documents x --document-tokens"
    )
    cases = _cases(target, choices)
    run.mkdir(parents=True, exist_ok=True)
    if restart:
        for path in (answers_path(run, NAME), log_path(run, NAME), run / DOCUMENT):
            path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="redknot-segments-") as store:
        engine = reuse_engine(arguments, target, config, choices, Path(store))
        answered = _answer(engine, [request for case in cases for request in case[:2]], run)
    result = Result(
        target, config, choices, arguments, Limits(needle_recall, max_nll_increase), cases, answered
    )
    document = verification(result)
    if document["passed"]:
        document["receipt"] = str(place_receipt(document, output, target, config))
    write_document(run / DOCUMENT, document)
    if json:
        emit_json(document)
    else:
        show_verification(console(), document)
    if not document["passed"]:
        failed = "; ".join(check["told"] for check in document["checks"] if not check["passed"])
        raise CliError(f"no receipt: {failed}. Try a larger {_repair(choices)}")


def _repair(choices: ReuseChoices) -> str:
    if choices.share is None:
        return f"--boundary than {choices.boundary}"
    return f"--share than {choices.share}"


def _cases(target: Target, choices: ReuseChoices) -> list[ReuseCase]:
    from vllm_redknot.evals.reuse_cases import reuse_cases

    assert target.model is not None
    tokenizer = read_tokenizer(target.model.path)
    try:
        cases = list(reuse_cases(tokenizer, choices))
    except ValueError as error:
        raise CliError(f"{error}: give another --length or --document-tokens") from error
    if not any(case.reuse.reused for case in cases):
        raise CliError(
            f"every document is recomputed whole, so nothing is reused: give a smaller {_repair(choices)}"
        )
    return cases


def _answer(engine: Engine, requests: Sequence[Request], folder: Path) -> Answered:
    try:
        with engine_bars() as told:
            return answer_all(engine, requests, folder, told, WORKER)
    except (AnswerFileError, EngineError) as error:
        raise CliError(str(error)) from error
    except KeyboardInterrupt:
        warn("what was answered is kept: the same command goes on from there")
        raise
