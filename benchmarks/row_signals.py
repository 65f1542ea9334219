"""Which FFN rows are computed in the layers just before the late ones: every signal at equal rows.

`python -m benchmarks.row_signals` writes benchmarks/results/row_signals.json; some 15 minutes of one core for SmolLM2.
Late layers skip everything, and the few layers before them compute the rows of largest signal, the same share in
each. Beside the signals of `row_curves`: the calibrated predictor, and the importance that was measured
on the very case (an oracle). Held-out texts, the head classes in force as the baseline; an interrupted run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import torch

from benchmarks.row_curves import GAP, LATE, RECENT, SIGNALS, SINK, Signal, answer, largest, summary
from benchmarks.row_subject import Subject, options
from vllm_redknot.evals.cases import Case
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.calibration import Mixture
from vllm_redknot.profiler.journal import Journal, open_journal
from vllm_redknot.profiler.masked import ProfiledAttention
from vllm_redknot.profiler.row_importance import RowImportance, row_importance
from vllm_redknot.profiler.row_judge import RowJudge
from vllm_redknot.profiler.row_model import FfnChoice, FfnInput, RowModel, Rows
from vllm_redknot.profiler.row_predictor import Probes, fit_probes
from vllm_redknot.rows.rules import PredictorRule
from vllm_redknot.rows.schedule import RowSchedule

SHARES: Final = (0.5, 0.25, 0.1)
"""Of the rows that may skip: what each layer computes."""
REACH: Final = 4 / 30
"""Share of the model's layers, those before the late ones, that choose."""
FIT: Final = (1400, 8, 1)
"""Length, texts of each task and seed of the texts that predictors are fitted to: as in `redknot profile --rows`."""


def predicted(probes: Probes) -> Signal:
    """The score of the calibrated predictor."""
    rules = {layer: PredictorRule(next(iter(of.values())).values(), 0.0) for layer, of in probes.items()}
    return lambda layer, state: rules[layer].scores(state.hidden)


def measured(importance: Mapping[int, RowImportance]) -> Signal:
    """What the answer of this case needs: an oracle."""

    def signal(layer: int, state: FfnInput) -> torch.Tensor:
        del state
        return importance[layer].importance

    return signal


def rows_by(choose: FfnChoice, late: RowSchedule, prompt: int, tokens: int) -> Rows:
    """Late layers, and before them the rows of a choice."""
    assert late.ffn_from is not None
    assert late.attention_from is not None
    position = torch.arange(tokens)
    return Rows((position >= SINK) & (position < prompt - RECENT), late.ffn_from, late.attention_from, choose)


def compare(
    model: RowModel,
    heads: HeadProfile,
    cases: Sequence[Case],
    late: RowSchedule,
    probes: Probes,
    journal: Journal,
) -> list[dict[str, Any]]:
    """Heads alone, late layers alone, then every signal at every share."""
    assert late.ffn_from is not None
    first = late.ffn_from - round(REACH * model.depth)
    layers = range(first, late.ffn_from)
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for number, case in enumerate(cases, start=1):
        judge = RowJudge(model, heads, [case], journal)
        found.setdefault(("heads alone", 1.0), []).append(asdict(judge.answers(None)[0]))
        found.setdefault(("late layers alone", 1.0), []).append(asdict(judge.answers(late)[0]))
        importance = row_importance(model, ProfiledAttention(heads), case, late, layers, seed=number)
        signals = {
            **SIGNALS,
            "predictor": predicted(probes),
            "oracle: importance for the answer": measured(importance),
        }
        for name, signal in signals.items():
            for share in SHARES:
                rows = partial(rows_by, largest(signal, first, share), late)
                result = answer(judge, case, f"{name} {share}", rows, first, journal)
                found.setdefault((name, share), []).append(result)
        print(f"case {number} of {len(cases)}", flush=True)
    return [
        {"signal": name, "computed": share, "layers": list(layers), "tasks": summary(answers)}
        for (name, share), answers in found.items()
    ]


def main() -> None:
    """Command line."""
    parser = options(__doc__, 1600, "row_signals.json")
    parser.add_argument("--texts", type=int, default=6, help="texts of each task")
    arguments = parser.parse_args()
    subject = Subject.of(arguments)
    heads, tokenizer, model = subject.heads, subject.tokenizer(), subject.model()
    length, texts, seed = FIT
    fitting = Mixture("calibration", (length,), texts, GAP, seed).cases(tokenizer)
    cases = Mixture("held-out", (arguments.length,), arguments.texts, GAP, 51).cases(tokenizer)
    header = subject.header("row_signals", [arguments.length, arguments.texts])
    first = round(LATE[1] * model.depth / 30)
    late = RowSchedule(ffn_from=first, attention_from=first, sink=SINK, recent=RECENT)
    with open_journal(arguments.output.with_suffix(".journal"), header) as journal:
        probes = fit_probes(model, heads, fitting, late, journal)
        rows = compare(model, heads, cases, late, probes, journal)
    document = {
        **subject.document(),
        "cases": {"length": arguments.length, "texts": arguments.texts, "sink": SINK, "recent": RECENT},
        "late": late.to_section(),
        "signals": rows,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        tasks = {
            task: (f"{v['found']}/{v['n']}", round(v["nll"], 3), round(v["kl"], 4))
            for task, v in row["tasks"].items()
        }
        print(row["signal"], row["computed"], tasks)


if __name__ == "__main__":
    main()
