"""Do profiles carry over: from needles to questions, from short texts to longer ones, from one kind of text to another?

`python -m benchmarks.head_transfer` scores heads on several sets of texts, chooses one profile of the same size from
each, and judges all of them on the same held-out cases: benchmarks/results/head_transfer.json. Head files go to
build/transfer, for `redknot eval` at lengths that are too long here. The run goes on from its journal when it is
interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from benchmarks.machine import describe_machine
from tools.smollm2_folder import default_folder
from vllm_redknot.evals.cases import Case
from vllm_redknot.evals.opening import opening
from vllm_redknot.evals.qa import read_questions
from vllm_redknot.evals.qa_items import qa_items
from vllm_redknot.evals.texts import Source, sentences_in
from vllm_redknot.heads import native
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.calibration import Mixture
from vllm_redknot.profiler.choose import choose_by_share, kept_share, steps_by_density
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.journal import Journal, open_journal
from vllm_redknot.profiler.run import combined
from vllm_redknot.profiler.scores import HeadScores, score_heads
from vllm_redknot.profiler.verify import Judge

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results"
WINDOWS: Final = (128, 256, 512, 768)
SINK: Final = 4
CONTEXT: Final = 8192
POINTS: Final = (1 / 6, 1 / 2, 5 / 6)
EVENLY: Final = {"needle": 1.0, "named": 1.0, "essays": 1.0}


@dataclass(frozen=True)
class Recipe:
    """What chooses a profile: a set of texts, and how much each task weighs."""

    texts: str
    weights: Mapping[str, float]


RECIPES: Final = {
    "all tasks, essays of 1.4K and 2K": Recipe("essays", EVENLY),
    "single needles only": Recipe("essays", {**EVENLY, "named": 0.0, "essays": 0.0}),
    "named needles only": Recipe("essays", {**EVENLY, "needle": 0.0, "essays": 0.0}),
    "essay tails only": Recipe("essays", {**EVENLY, "needle": 0.0, "named": 0.0}),
    "all tasks, essays of 1K": Recipe("essays 1K", EVENLY),
    "all tasks, essays of 1.4K, 2K and 4K": Recipe("essays to 4K", EVENLY),
    "all tasks, Wikipedia of 1.4K": Recipe("wikipedia", EVENLY),
}


def wikipedia(held_out: bool) -> Source:
    """Sentences of one half of the paragraphs of SQuAD; the halves share no article."""
    paragraphs = read_questions("squad").paragraphs
    half = len(paragraphs) // 2
    return sentences_in(" ".join(paragraphs[half:] if held_out else paragraphs[:half]))


def texts(tokenizer: Tokenizer, name: str) -> list[Case]:
    """The cases that score heads."""
    essays = Mixture("calibration", (1400, 2000), 3, max(WINDOWS), 0)
    if name == "essays to 4K":
        longer = Mixture("calibration", (4000,), 2, max(WINDOWS), 0)
        # Essay tails gain nothing from so much context.
        return [*cases_of(tokenizer, longer, ("needle", "named")), *cases_of(tokenizer, essays)]
    mixture = {
        "essays": essays,
        "essays 1K": Mixture("calibration", (1000,), 3, max(WINDOWS), 0),
        "wikipedia": Mixture(wikipedia(held_out=False), (1400,), 3, max(WINDOWS), 0),
    }[name]
    return cases_of(tokenizer, mixture)


def cases_of(tokenizer: Tokenizer, mixture: Mixture, tasks: Sequence[str] = tuple(EVENLY)) -> list[Case]:
    """Cases of these tasks, with the model's first token."""
    start = opening(tokenizer)
    return [case.after(start) for case in mixture.cases(tokenizer) if case.task in tasks]


def judged(tokenizer: Tokenizer, length: int, count: int) -> dict[str, list[Case]]:
    """Held-out cases by kind of text: none shares a sentence with what scores heads."""
    sources: dict[str, Source] = {"essays": "held-out", "Wikipedia": wikipedia(held_out=True)}
    found = {
        name: cases_of(tokenizer, Mixture(source, (length,), count, max(WINDOWS), 31))
        for name, source in sources.items()
    }
    items = qa_items(tokenizer, (length,), 0, 3 * count)
    found["questions"] = [
        Case(item.place.task, item.request.prompt, item.request.forced, (0, 0)) for item in items
    ]
    return found


def profile_of(scores: HeadScores, weights: Mapping[str, float], share: float) -> HeadProfile:
    """The windows of most value that keep `share` of the KV bytes."""
    steps = steps_by_density(combined(scores, weights), (*WINDOWS, None), SINK, CONTEXT)
    rows = len(scores.mass["needle"])
    heads = len(scores.mass["needle"][0])
    return choose_by_share(steps, tuple(range(rows)), heads, WINDOWS[0], SINK, CONTEXT, share)


def chosen(
    model: HookedModel, tokenizer: Tokenizer, share: float, journal: Journal
) -> Iterator[tuple[str, HeadProfile]]:
    """A profile for each recipe."""
    scores: dict[str, HeadScores] = {}
    for name, recipe in RECIPES.items():
        if recipe.texts not in scores:
            cases = texts(tokenizer, recipe.texts)
            scores[recipe.texts] = score_heads(model, cases, WINDOWS, SINK, POINTS, journal, lambda: None)
        yield name, profile_of(scores[recipe.texts], recipe.weights, share)


def compared(judge: Judge, profile: HeadProfile) -> dict[str, dict[str, float]]:
    """By task: answers found and mean NLL, dense and with the profile."""
    pairs = list(zip(judge.answers(None), judge.answers(profile), strict=True))
    found = {}
    for task in dict.fromkeys(dense.task for dense, _ in pairs):
        dense, ours = zip(*(pair for pair in pairs if pair[0].task == task), strict=True)
        found[task] = {
            "n": len(dense),
            "dense_found": sum(answer.found for answer in dense),
            "found": sum(answer.found for answer in ours),
            "dense_nll": fmean(answer.nll for answer in dense),
            "nll": fmean(answer.nll for answer in ours),
        }
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-folder", type=Path, default=default_folder())
    parser.add_argument("--share", type=float, default=0.22, help="of the KV bytes at 8K that is kept")
    parser.add_argument("--length", type=int, default=1600, help="tokens of a judged text")
    parser.add_argument(
        "--texts", type=int, default=4, help="judged texts of each task; of questions three times as many"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "head_transfer.json")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.model_folder / "tokenizer.json"))
    cases = judged(tokenizer, arguments.length, arguments.texts)
    model = HookedModel(arguments.model_folder, torch.bfloat16)
    files = ROOT / "build" / "transfer"
    files.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    header = {"benchmark": "head_transfer", "windows": WINDOWS, "sink": SINK, "points": POINTS}
    with open_journal(arguments.output.with_suffix(".journal"), header) as journal:
        for number, (name, profile) in enumerate(chosen(model, tokenizer, arguments.share, journal)):
            file = files / f"{number}.json"
            native.write(profile, file)
            row: dict[str, Any] = {
                "recipe": name,
                "profile": profile.describe(),
                "kv_share": kept_share(profile, CONTEXT),
            }
            for kind, mine in cases.items():
                row[kind] = compared(Judge(model, mine, journal), profile)
            rows.append(row)
            print(json.dumps(row), flush=True)
    document = {
        "machine": describe_machine(),
        "share": arguments.share,
        "length": arguments.length,
        "texts": arguments.texts,
        "results": rows,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
