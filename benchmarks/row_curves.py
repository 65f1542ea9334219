"""Quality against what prompt tokens skip: how deep, by which rule, how many recent tokens; and over two turns.

`python -m benchmarks.row_curves` writes benchmarks/results/row_curves.json; some 12 minutes of one core for SmolLM2.
The head classes in force (bundled, or --heads) are the baseline, rows come on top. One pass through transformers a case
and point, on held-out texts, without vLLM; the run goes on from its journal when it is interrupted. "Equal rows": every
rule computes the same share of the rows that may skip, in every layer from `start` on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean
from typing import Any, Final

import torch
from pydantic import JsonValue
from tokenizers import Tokenizer

from benchmarks.row_subject import Subject, options
from vllm_redknot.evals.cases import ASK_SINGLE, Case, single_needle
from vllm_redknot.evals.texts import essay_sentences
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.calibration import Mixture
from vllm_redknot.profiler.journal import Journal, open_journal
from vllm_redknot.profiler.row_judge import RowJudge, scored
from vllm_redknot.profiler.row_model import FfnChoice, FfnInput, RowModel, Rows, rows_of
from vllm_redknot.rows.schedule import RowSchedule

SINK: Final = 4
RECENT: Final = 128
LATE: Final = (20, 23)
EARLY: Final = (15, 20)
"""First layers without FFN and without attention: a schedule that is known to hold, and one too many."""
PUBLISHED: Final[dict[str, JsonValue]] = {
    "rule": "mass",
    "start": 4,
    "share": 0.2,
    "deep_start": 20,
    "deep_share": 0.05,
}
"""RedKnot's values for a model of 32 layers, whose rule sees the whole prompt as one chunk here."""
GAP: Final = 1030
"""Needles lie farther back than any window and any `recent`."""
OUT_OF_WINDOWS: Final = 800
"""Tokens of a second turn's text: the first turn lies out of every window."""
FOLLOW_UP: Final = 9000
"""Sentence of the held-out essays that the first reply begins with."""

Signal = Callable[[int, FfnInput], torch.Tensor]


def relative_norm(layer: int, state: FfnInput) -> torch.Tensor:
    """What attention adds, relative to the residual."""
    del layer
    return state.added / state.residual


def attention_norm(layer: int, state: FfnInput) -> torch.Tensor:
    """What attention adds: the order of the published rule."""
    del layer
    return state.added


def output_norm(layer: int, state: FfnInput) -> torch.Tensor:
    """What the FFN itself would add: an oracle."""
    del layer
    return state.output_norms()


def at_random(layer: int, state: FfnInput) -> torch.Tensor:
    """Any order, the same in every run."""
    generator = torch.Generator().manual_seed(layer)
    return torch.rand(len(state.added), generator=generator).to(state.added.device)


SIGNALS: Final[dict[str, Signal]] = {
    "relative norm": relative_norm,
    "attention norm (mass)": attention_norm,
    "random": at_random,
    "oracle: FFN output norm": output_norm,
}


def largest(signal: Signal, start: int, share: float) -> FfnChoice:
    """From layer `start` on, the FFN computes the share of the rows with the largest signal."""

    def choose(layer: int, state: FfnInput) -> torch.Tensor | None:
        if layer < start:
            return None
        values = signal(layer, state)
        chosen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        chosen[values.topk(math.ceil(share * len(values))).indices] = True
        return chosen

    return choose


@dataclass(frozen=True)
class Point:
    """One way to skip. `rows` is told the prompt's and all tokens; nothing skips before layer `first`."""

    family: str
    settings: dict[str, Any]
    rows: Callable[[int, int], Rows]
    first: int

    @property
    def name(self) -> str:
        """Unique, for the journal."""
        return f"{self.family} {json.dumps(self.settings)}"


def late(family: str, depth: int, ffn_from: int, attention_from: int, recent: int = RECENT) -> Point:
    """Late layers alone; `depth` as a first layer means none."""
    schedule = RowSchedule(
        ffn_from=ffn_from,
        attention_from=None if attention_from == depth else attention_from,
        sink=SINK,
        recent=recent,
    )
    given = {"ffn_from": ffn_from, "attention_from": schedule.attention_from, "recent": recent}
    return Point(family, given, partial(_scheduled, schedule, depth), ffn_from)


def sparse(depth: int, rule: str, start: int, share: float) -> Point:
    """One rule at equal rows in all layers from `start` on."""
    choose = largest(SIGNALS[rule], start, share)

    def rows(prompt: int, tokens: int) -> Rows:
        position = torch.arange(tokens)
        return Rows((position >= SINK) & (position < prompt - RECENT), depth, depth, choose)

    return Point("rules at equal rows", {"rule": rule, "start": start, "share": share}, rows, start)


def _scheduled(schedule: RowSchedule, depth: int, prompt: int, tokens: int) -> Rows:
    return rows_of(schedule, prompt, tokens, depth)


def points(depth: int, quick: bool) -> Iterator[Point]:
    """All points. Depths are of SmolLM2's 30 layers, scaled to the model's."""

    def at(layer: int) -> int:
        return round(layer * depth / 30)

    depths = (20, 26) if quick else (8, 12, 14, 16, 18, 20, 22, 24, 26, 28)
    for first in map(at, depths):
        yield late("FFN from", depth, first, depth)
        yield late("FFN and attention from", depth, first, first)
    yield late("FFN from, attention from", depth, *map(at, LATE))
    for rule in SIGNALS:
        for start in map(at, (20,) if quick else (10, 15, 20)):
            for share in (0.5,) if quick else (0.5, 0.2):
                yield sparse(depth, rule, start, share)
    published = RowSchedule.parse({"sparse_ffn": {**PUBLISHED, "start": at(4), "deep_start": at(20)}})
    yield Point("published rule", dict(PUBLISHED), partial(_scheduled, published, depth), at(4))
    for first, attention in (LATE, EARLY):
        for recent in (64,) if quick else (16, 64, 256, 512):
            yield late("recent", depth, at(first), at(attention), recent)
    yield late("recent", depth, *map(at, EARLY))


def answer(
    judge: RowJudge, case: Case, name: str, rows: Callable[[int, int], Rows], first: int, journal: Journal
) -> dict[str, Any]:
    """Of one case, which is the judge's only one."""
    key = f"{name} {case.fingerprint()}"
    found: dict[str, Any] | None = journal.get(key)
    if found is None:
        tokens = len(case.prompt) + len(case.answer) - 1
        result = judge.pass_under(0, rows(len(case.prompt), tokens), first)
        shares = list(result.computed.values())
        found = {
            **asdict(scored(case, result.logits)),
            "kl": judge.divergence(0, result.logits),
            "computed": fmean(shares) if shares else None,
        }
        journal.add(key, found)
    return found


def summary(answers: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per task: found of n, mean NLL and divergence from heads alone, and the share of FFN rows a rule computed."""
    tasks = {}
    for task in dict.fromkeys(found["task"] for found in answers):
        mine = [found for found in answers if found["task"] == task]
        tasks[task] = {
            "n": len(mine),
            "found": sum(found["found"] for found in mine),
            "nll": fmean(found["nll"] for found in mine),
            "kl": fmean(found["kl"] for found in mine),
        }
        if mine[0]["computed"] is not None:
            tasks[task]["computed"] = fmean(found["computed"] for found in mine)
    return tasks


@dataclass(frozen=True)
class TwoTurns:
    """A conversation whose second turn asks for what the first one's text holds; `first`: tokens of that prompt."""

    case: Case
    first: int
    where: str


def conversations(tokenizer: Tokenizer, length: int, number: int) -> Iterator[TwoTurns]:
    """Needles out of every window, and needles among the last tokens of the first turn, which did not skip there."""
    sentences = essay_sentences("held-out")

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    ask = encode(f"\n\n{ASK_SINGLE}")
    for seed in range(number):
        at = FOLLOW_UP + 80 * seed
        reply = encode(" ".join(sentences[at : at + 3]))
        follow = encode("\n\n" + " ".join(sentences[at + 3 : at + 80]))[:OUT_OF_WINDOWS]
        for where, depth in (("far back", 0.25), ("among the recent tokens of the first turn", 1.0)):
            needle = single_needle(tokenizer, length, depth, 700 + seed)
            text = needle.prompt[: -len(ask)] + encode("\n\nIn short, this text is about")
            yield TwoTurns(
                Case("needle", text + reply + follow + ask, needle.answer, needle.span), len(text), where
            )


def turn_rows(
    turns: TwoTurns, how: str, first_layers: tuple[int, int], depth: int, prompt: int, tokens: int
) -> Rows:
    """What is skipped when the second turn is answered.

    Args:
        how: "as served": what a prompt of both turns skips, whatever is cached. "first turn as it was": the last tokens
            of the first prompt keep the KV they had then. "first turn only": the second turn computes all of its own.
    """
    position = torch.arange(tokens)
    old = (position >= SINK) & (position < turns.first - RECENT)
    new = (position >= turns.first) & (position < prompt - RECENT)
    skips = {
        "as served": (position >= SINK) & (position < prompt - RECENT),
        "first turn as it was": old | new,
        "first turn only": old,
    }[how]
    ffn_from, attention_from = (round(layer * depth / 30) for layer in first_layers)
    return Rows(skips, ffn_from, attention_from)


def two_turns(
    model: RowModel, heads: HeadProfile, tokenizer: Tokenizer, length: int, quick: bool, journal: Journal
) -> list[dict[str, Any]]:
    """Both schedules, three ways to treat the first turn, two places of the needle."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for turns in conversations(tokenizer, length, 1 if quick else 4):
        judge = RowJudge(model, heads, [turns.case], journal)
        (alone,) = judge.answers(None)
        found.setdefault(("heads alone", "", turns.where), []).append(asdict(alone))
        for first_layers in (LATE, EARLY):
            for how in ("as served", "first turn as it was", "first turn only"):
                rows = partial(turn_rows, turns, how, first_layers, model.depth)
                schedule = f"FFN from {first_layers[0]}, attention from {first_layers[1]}"
                first = round(first_layers[0] * model.depth / 30)
                result = answer(judge, turns.case, f"turns {schedule} {how}", rows, first, journal)
                found.setdefault((schedule, how, turns.where), []).append(result)
    return [
        {"schedule": schedule, "first_turn": how, "needle": where, **summary(answers)["needle"]}
        for (schedule, how, where), answers in found.items()
    ]


def curve(
    model: RowModel, heads: HeadProfile, cases: Sequence[Case], quick: bool, journal: Journal
) -> list[dict[str, Any]]:
    """Every point over all cases, heads alone first. Case by case: what passes begin from is kept for one case only."""
    found: dict[str, list[dict[str, Any]]] = {}
    made = list({point.name: point for point in points(model.depth, quick)}.values())
    for number, case in enumerate(cases, start=1):
        judge = RowJudge(model, heads, [case], journal)
        (alone,) = judge.answers(None)
        found.setdefault("", []).append(asdict(alone))
        for point in made:
            result = answer(judge, case, point.name, point.rows, point.first, journal)
            found.setdefault(point.name, []).append(result)
        print(f"case {number} of {len(cases)}", flush=True)
    alone_row = {"family": "heads alone", "settings": {}, "tasks": summary(found[""])}
    return [
        alone_row,
        *(
            {"family": point.family, "settings": point.settings, "tasks": summary(found[point.name])}
            for point in made
        ),
    ]


def main() -> None:
    """Command line."""
    parser = options(__doc__, 1600, "row_curves.json")
    parser.add_argument("--texts", type=int, default=4, help="texts of each task")
    parser.add_argument("--quick", action="store_true", help="a point of each kind, one text of each task")
    arguments = parser.parse_args()
    subject = Subject.of(arguments)
    heads, tokenizer, model = subject.heads, subject.tokenizer(), subject.model()
    texts = 1 if arguments.quick else arguments.texts
    cases = Mixture("held-out", (arguments.length,), texts, GAP, 51).cases(tokenizer)
    header = subject.header("row_curves", [arguments.length, texts, arguments.quick])
    with open_journal(arguments.output.with_suffix(".journal"), header) as journal:
        rows = curve(model, heads, cases, arguments.quick, journal)
        turns = two_turns(model, heads, tokenizer, arguments.length - 300, arguments.quick, journal)
    document = {
        **subject.document(),
        "cases": {"length": arguments.length, "texts": texts, "sink": SINK, "recent": RECENT},
        "points": rows,
        "two_turns": turns,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        tasks = {task: (f"{v['found']}/{v['n']}", round(v["nll"], 3)) for task, v in row["tasks"].items()}
        print(row["family"], json.dumps(row["settings"]), tasks)
    for row in turns:
        print(row)


if __name__ == "__main__":
    main()
