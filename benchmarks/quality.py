"""What the bundled head classes cost: needles and named passcodes, REDKNOT beside stock vLLM on the same token ids.

`python -m benchmarks.quality` writes benchmarks/results/quality.json. Completions are greedy; a needle is found if the
answer states its passcode. NLL is of the passcode's tokens after the question.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from benchmarks.machine import describe_machine
from tools.smollm2_folder import default_folder
from vllm_redknot.evals import run
from vllm_redknot.evals.needle import needle_prompt
from vllm_redknot.evals.requests import Request
from vllm_redknot.evals.run import Engine
from vllm_redknot.evals.texts import essay_sentences

RESULTS = Path(__file__).parent / "results"
HEADS = Path(__file__).parent / "heads"
COLOURS = ("red", "green", "blue", "white")
SETTINGS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "bundled profile": {},
    "12 global heads, KV share 0.18": {"heads": str(HEADS / "smollm2-kv18.json")},
    "13 needle-ranked heads, window 256": {"heads": str(HEADS / "smollm2-needle13.json")},
}


@dataclass(frozen=True)
class Case:
    """A prompt whose continuation is known."""

    task: str
    prompt: str
    answer: str


def needles(
    model: Path, lengths: Sequence[int], depths: Sequence[float], seeds: Sequence[int]
) -> Iterator[Case]:
    """One passcode in a text, asked for at its end."""
    for length in lengths:
        for depth in depths:
            for seed in seeds:
                made = needle_prompt(model, length, depth, seed)
                yield Case(f"needle {length}", made.completion, f" {made.passcode}")


def named_passcodes(sentences_per_gap: int, seeds: Sequence[int]) -> Iterator[Case]:
    """Four coloured passcodes spread over a text, one of them asked for."""
    sentences = essay_sentences()
    for seed in seeds:
        draw = random.Random(seed)
        codes = [str(draw.randrange(10_000, 100_000)) for _ in COLOURS]
        start = draw.randrange(len(sentences) - 5 * sentences_per_gap)
        text: list[str] = []
        for index, (colour, code) in enumerate(zip(COLOURS, codes, strict=True)):
            at = start + index * sentences_per_gap
            text += sentences[at : at + sentences_per_gap]
            text.append(f"The {colour} passcode is {code}. Remember it.")
        text += sentences[start + 4 * sentences_per_gap : start + 5 * sentences_per_gap]
        asked = draw.randrange(len(COLOURS))
        prompt = " ".join(text) + f"\n\nThe {COLOURS[asked]} passcode is"
        yield Case(f"four named passcodes, {sentences_per_gap} sentences apart", prompt, f" {codes[asked]}")


def answer_all(model: Path, redknot: dict[str, Any] | None, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Greedy answers and NLL of the right ones, from an engine in a process of its own."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    requests = []
    for number, case in enumerate(cases):
        prompt, target = (tuple(tokenizer.encode(text).ids) for text in (case.prompt, case.answer))
        requests.append(Request(str(number), prompt, max_tokens=len(target) + 2, forced=target))
    arguments = {
        **{"model": str(model), "enforce_eager": True, "max_model_len": 8192, "block_size": 32},
        **{"kv_cache_memory_bytes": 2**30, "disable_log_stats": True},
    }
    if redknot is not None:
        arguments |= {"attention_backend": "REDKNOT", "additional_config": {"redknot": redknot}}
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine("stock" if redknot is None else "REDKNOT", arguments, {})
        found = run.answer_all(engine, requests, Path(folder), lambda *_: None).answers
    return [
        {
            "task": case.task,
            "found": case.answer.strip() in found[request.key].text,
            "nll": -statistics.fmean(found[request.key].forced_logprobs),
            "tokens": len(request.prompt),
        }
        for case, request in zip(cases, requests, strict=True)
    ]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Found, n and mean NLL per task."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    return {
        task: {
            "found": sum(row["found"] for row in rows if row["task"] == task),
            "n": sum(row["task"] == task for row in rows),
            "mean_nll": statistics.fmean(row["nll"] for row in rows if row["task"] == task),
            "mean_tokens": statistics.fmean(row["tokens"] for row in rows if row["task"] == task),
        }
        for task in tasks
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-folder", type=Path, default=default_folder(), help="folder of SmolLM2")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the cases, stock and the bundled profile"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    arguments = parser.parse_args()
    model: Path = arguments.model_folder
    depths, seeds = (0.1, 0.3, 0.5, 0.7, 0.9), (0, 1, 2)
    cases = [
        *needles(model, (900,), depths[2:3], seeds),
        *([] if arguments.quick else needles(model, (1800,), depths, seeds)),
        *([] if arguments.quick else needles(model, (900,), (0.1, 0.3, 0.7, 0.9), seeds)),
        *([] if arguments.quick else needles(model, (3600,), depths, seeds[:1])),
        *([] if arguments.quick else named_passcodes(10, range(10))),
    ]
    chosen = dict(list(SETTINGS.items())[:2]) if arguments.quick else SETTINGS
    rows = {name: answer_all(model, redknot, cases) for name, redknot in chosen.items()}
    document = {
        "machine": describe_machine(),
        "summary": {name: summary(found) for name, found in rows.items()},
        "cases": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document["summary"], indent=2))


if __name__ == "__main__":
    main()
