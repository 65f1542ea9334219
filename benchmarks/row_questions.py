"""What row skipping costs questions: the right answers' likelihood beside heads alone, of SQuAD and HotpotQA.

`python -m benchmarks.row_questions` writes benchmarks/results/row_questions.json; some 8 minutes of two cores for
SmolLM2. One pass through transformers for each question and schedule, no vLLM; an interrupted run goes on. The
examples and the question at a prompt's end are among its recent tokens, the paragraphs are not.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.row_subject import Subject, options
from vllm_redknot.evals.cases import Case
from vllm_redknot.evals.qa_items import qa_items
from vllm_redknot.evals.statistics import compare
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.profiler.journal import open_journal
from vllm_redknot.profiler.row_judge import RowAnswer, RowJudge
from vllm_redknot.rows.schedule import RowSchedule, schedule_of

HEADS: Final = Path(__file__).parent / "heads"


def schedules() -> dict[str, RowSchedule]:
    """The calibrated ones, and one that skips every FFN row in the layers where predictors choose."""
    found = {}
    for name in ("rows", "predictors"):
        schedule = schedule_of(None, load_profile(HEADS / f"smollm2-{name}.json").sections)
        assert schedule is not None
        found[f"smollm2-{name}.json"] = schedule
    return {**found, "no FFN from 19 on, no attention from 23": RowSchedule(ffn_from=19, attention_from=23)}


def row(task: str, name: str, alone: Sequence[RowAnswer], skipping: Sequence[RowAnswer]) -> dict[str, Any]:
    """Of one data set under one schedule."""
    found = compare(
        [answer.nll for answer in alone], [answer.nll for answer in skipping], 0, f"{task} {name}"
    )
    assert found.stock is not None
    assert found.difference is not None
    return {
        "task": task,
        "schedule": name,
        "n": found.n,
        "heads_nll": found.stock.to_json(),
        "nll_rise": found.difference.to_json(),
        "kl": statistics.fmean(answer.kl for answer in skipping),
    }


def main() -> None:
    """Command line."""
    parser = options(__doc__, 1024, "row_questions.json")
    parser.add_argument("--questions", type=int, default=50, help="of each data set")
    arguments = parser.parse_args()
    subject = Subject.of(arguments)
    heads, tokenizer, model = subject.heads, subject.tokenizer(), subject.model()
    header, tried = subject.header("row_questions", [arguments.length, arguments.questions]), schedules()
    alone: dict[str, list[RowAnswer]] = {}
    skipping: dict[tuple[str, str], list[RowAnswer]] = {}
    with open_journal(arguments.output.with_suffix(".journal"), header) as journal:
        for item in qa_items(tokenizer, (arguments.length,), 0, arguments.questions):
            task, asked = item.place.task, item.request
            judge = RowJudge(model, heads, [Case(task, asked.prompt, asked.forced, (0, 0))], journal)
            alone.setdefault(task, []).extend(judge.answers(None))
            for name, schedule in tried.items():
                skipping.setdefault((task, name), []).extend(judge.answers(schedule))
    rows = [row(task, name, alone[task], answers) for (task, name), answers in skipping.items()]
    document = {
        **subject.document(),
        "schedules": {name: schedule.describe() for name, schedule in tried.items()},
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for found in rows:
        print(found)


if __name__ == "__main__":
    main()
