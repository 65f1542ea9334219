"""What reuse costs in quality, by repair policy: the cases of `redknot verify-reuse`, asked dense and with each policy.

`python -m benchmarks.reuse_quality` writes benchmarks/results/reuse_quality.json, one run per head setting, and prints
the tables of docs/reuse.md. Documents are stored once a case. Answers are kept in --run: an interrupted command goes on
when it is given again, and another policy asks for nothing but its own answers. `--answered` makes the tables of what
is there; cases are asked in rounds of all tasks, so that they have some of each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from tokenizers import Tokenizer

from benchmarks.machine import describe_machine
from benchmarks.reuse_quality_cells import (
    DENSE,
    Policy,
    blend_policy,
    boundary_policy,
    case_name,
    results,
    samples,
    smallest_boundary,
    table,
)
from tools.smollm2_folder import default_folder
from vllm_redknot.cli.eval_document import without_folder
from vllm_redknot.cli.eval_engines import EngineOptions, engine_arguments
from vllm_redknot.cli.reuse_engine import check_variables, reuse_engine
from vllm_redknot.cli.target import settings, target_of_model
from vllm_redknot.config import ALL_GLOBAL
from vllm_redknot.evals.answer_file import AnswerFile, open_answers
from vllm_redknot.evals.engine_process import engine_process
from vllm_redknot.evals.fidelity import TOP
from vllm_redknot.evals.fingerprints import requests_fingerprint
from vllm_redknot.evals.requests import Answer
from vllm_redknot.evals.reuse_cases import ReuseCase, ReuseChoices, reuse_cases
from vllm_redknot.evals.reuse_requests import ReuseRequest
from vllm_redknot.evals.run import Engine
from vllm_redknot.whole_file import write_document

RESULTS: Final = Path(__file__).parent / "results"
WORKER: Final = ("-m", "vllm_redknot.evals.reuse_worker")
BOUNDARIES: Final = (0, 4, 16, 32, 64)
BUNDLED: Final = "bundled"
FULL: Final = {"documents": 4, "document_tokens": 400, "texts": 10, "questions": 100, "length": 1024}
QUICK: Final = {"documents": 3, "document_tokens": 150, "texts": 1, "questions": 3, "length": 450}
REQUESTS_A_REPORT: Final = 30
Case = Mapping[str, ReuseRequest]
"""One prompt's requests by policy, dense first."""


def with_policies(case: ReuseCase, policies: Sequence[Policy]) -> Case:
    """What is asked of one prompt, in this order."""
    asked = {DENSE: case.dense}
    for policy in policies:
        asked[policy.name] = replace(
            case.reuse,
            key=f"{policy.name}/{case_name(case)}",
            policy=policy.wish,
            reused=policy.reused(case.reuse.documents),
        )
    return asked


def in_rounds(cases: Sequence[ReuseCase], rounds: int) -> list[ReuseCase]:
    """The cases in so many rounds, each with its part of every task, the order within a task kept."""
    tasks = [case_name(case).split("/")[0] for case in cases]
    counts, seen = Counter(tasks), Counter[str]()
    rank: list[int] = []
    for task in tasks:
        rank.append(seen[task] * rounds // counts[task])
        seen[task] += 1
    order = sorted(range(len(cases)), key=rank.__getitem__)
    return [cases[index] for index in order]


class Pace:
    """Says after every few answers how long it took, and how long the rest will: as long per prompt token as so far."""

    def __init__(self, pending: Sequence[ReuseRequest]) -> None:
        self._tokens = [len(request.prompt) for request in pending]
        self._answered = 0
        self._start = time.monotonic()

    def answered(self) -> None:
        """One more answer is there, in the order of the requests."""
        self._answered += 1
        left = len(self._tokens) - self._answered
        if self._answered % REQUESTS_A_REPORT and left:
            return
        elapsed = time.monotonic() - self._start
        done = sum(self._tokens[: self._answered])
        rest = elapsed * (sum(self._tokens) - done) / done
        print(
            f"{self._answered} answers in {elapsed / 60:.1f} min; {left} are left, an estimated {rest / 60:.0f} min",
            flush=True,
        )


def ask(
    engine: Engine, cases: Sequence[Case], folder: Path, start: bool
) -> tuple[dict[str, dict[str, Answer]], Mapping[str, Any]]:
    """Answers by policy and case, and what the engine said of itself. A file per policy keeps them.

    Args:
        start: whether an engine may be started for what is not answered.

    Raises:
        AnswerFileError: A file in `folder` is damaged, or another run's.
        EngineError: The engine failed. What it answered is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files: dict[str, AnswerFile] = {}
        for name in cases[0]:
            requests = [case[name] for case in cases]
            header = {**engine.identity, "requests": requests_fingerprint(requests)}
            keys = {request.key for request in requests}
            files[name] = stack.enter_context(open_answers(folder / f"{name}.jsonl", header, keys))
        pending = [
            request
            for case in cases
            for name, request in case.items()
            if request.key not in files[name].answers
        ]
        if pending and start:
            for reply in _replies(stack, engine, pending, folder):
                for name, file in files.items():
                    if "facts" in reply or reply["key"].split("/")[0] == name:
                        file.add(reply)
        answers = {
            name: {key.split("/", 1)[1]: answer for key, answer in file.answers.items()}
            for name, file in files.items()
        }
        return answers, dict(files[DENSE].facts)


def _replies(
    stack: ExitStack, engine: Engine, pending: Sequence[ReuseRequest], folder: Path
) -> Iterator[dict[str, Any]]:
    pace = Pace(pending)
    replies = engine_process(engine.name, engine.arguments, pending, folder / "engine.log", WORKER)
    for reply in stack.enter_context(replies):
        yield reply
        if "facts" in reply:
            # The engine's start is not the pace of its answers.
            pace = Pace(pending)
        else:
            pace.answered()


def measure(
    model: Path, heads: str, choices: ReuseChoices, policies: Sequence[Policy], folder: Path, start: bool
) -> dict[str, Any]:
    """One head setting: what its engine answered, and what that says of every policy.

    Raises:
        ValueError: No case of a task is answered.
    """
    # An engine that blends serves boundaries too.
    repair = "blend" if any(policy.share is not None for policy in policies) else None
    config = settings(heads=None if heads == BUNDLED else heads, boundary=choices.boundary, policy=repair)
    check_variables(config)
    target = target_of_model(model, config)
    assert target.model is not None
    options = EngineOptions(None, None, 512, 32, "auto", tp_size=1, enforce_eager=True)
    longest = max(choices.length, choices.documents * choices.document_tokens + 64)
    arguments = engine_arguments(target.model, options, longest, TOP)
    tokenizer = Tokenizer.from_file(str(target.model.path / "tokenizer.json"))
    cases = in_rounds(list(reuse_cases(tokenizer, choices)), choices.texts)
    folder /= f"{Path(heads).stem}-{target.profile.fingerprint()}"
    print(f"{heads}: {target.profile.describe()}: {len(cases)} prompts, {len(policies)} policies", flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="redknot-segments-") as store:
        engine = reuse_engine(arguments, target, config, choices, Path(store))
        answers, facts = ask(engine, [with_policies(case, policies) for case in cases], folder, start)
    print(f"{heads}: {(time.monotonic() - begin) / 60:.1f} min", flush=True)
    answered = [case for case in cases if all(case_name(case) in found for found in answers.values())]
    counts = Counter(case_name(case).split("/")[0] for case in answered)
    if missing := {case_name(case).split("/")[0] for case in cases} - counts.keys():
        raise ValueError(f"no case of {', '.join(sorted(missing))} is answered: leave --answered out")
    return {
        "heads": {
            "setting": heads if heads in (BUNDLED, ALL_GLOBAL) else Path(heads).name,
            "origin": without_folder(target.origin, config, target.model),
            "description": target.profile.describe(),
            "fingerprint": target.profile.fingerprint(),
        },
        "engine": {
            "arguments": {key: value for key, value in arguments.items() if key != "model"},
            **facts,
        },
        "cases": dict(counts),
        "prompt_tokens": round(fmean(len(case.dense.prompt) for case in answered), 1),
        "results": results(answered, policies, answers, choices.seed),
        "samples": list(samples(answered, policies, answers)),
    }


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-folder", type=Path, default=default_folder(), help="folder of SmolLM2")
    parser.add_argument(
        *("--heads", "-H"),
        action="append",
        help=f"{BUNDLED}, {ALL_GLOBAL} or a head-class file; may be repeated; default: the first two",
    )
    parser.add_argument("--boundaries", type=int, nargs="*", default=BOUNDARIES, help="0 recomputes nothing")
    parser.add_argument(
        "--blend", type=float, nargs="*", default=(), metavar="SHARE", help="most deviating tokens"
    )
    for key, value in FULL.items():
        parser.add_argument(
            f"--{key.replace('_', '-')}", type=int, help=f"default: {value}; quick: {QUICK[key]}"
        )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few, short cases")
    parser.add_argument("--run", type=Path, default=Path("build/reuse_quality"), help="keeps the answers")
    parser.add_argument("--restart", action="store_true", help="throw the answers in --run away")
    parser.add_argument("--answered", action="store_true", help="start no engine: tables of what is answered")
    parser.add_argument("--output", type=Path, default=RESULTS / "reuse_quality.json")
    arguments = parser.parse_args(given)
    asked = {
        key: value if getattr(arguments, key) is None else getattr(arguments, key)
        for key, value in (QUICK if arguments.quick else FULL).items()
    }
    policies = [*map(boundary_policy, arguments.boundaries), *map(blend_policy, arguments.blend)]
    if arguments.restart:
        for path in arguments.run.glob("*/*.jsonl"):
            path.unlink()
    # Every request says its own: this is what a request would have that says nothing.
    choices = ReuseChoices(0, **asked, seed=arguments.seed)
    runs = [
        measure(arguments.model_folder, heads, choices, policies, arguments.run, not arguments.answered)
        for heads in arguments.heads or (BUNDLED, ALL_GLOBAL)
    ]
    document = {
        "machine": describe_machine(),
        "model": arguments.model_folder.resolve().name,
        "asked": asked,
        "seed": arguments.seed,
        "intervals": "95%, percentile bootstrap over cases, 10000 resamples",
        "smallest_boundary_in_budget": smallest_boundary(runs),
        "runs": runs,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_document(arguments.output, document)
    for run in runs:
        print(f"\n{run['heads']['origin']}: {run['heads']['description']}\n")
        print("\n".join(table(run)))
    print(f"\nSmallest boundary in budget in every run: {document['smallest_boundary_in_budget']}")


if __name__ == "__main__":
    main()
