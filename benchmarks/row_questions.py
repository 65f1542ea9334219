"""What row skipping costs questions: the right answers' likelihood beside heads alone, of SQuAD and HotpotQA.

`python -m benchmarks.row_questions` writes benchmarks/results/row_questions.json; some 8 minutes of two cores for
SmolLM2. One pass through transformers for each question and schedule, no vLLM; an interrupted run goes on. The
examples and the question at a prompt's end are among its recent tokens, the paragraphs are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from benchmarks.machine import describe_machine
from benchmarks.row_curves import RESULTS
from tools.smollm2_folder import default_folder
from vllm_redknot.cli.target import settings, target_of_model
from vllm_redknot.evals.cases import Case
from vllm_redknot.evals.fingerprints import model_fingerprint
from vllm_redknot.evals.qa_items import qa_items
from vllm_redknot.evals.statistics import compare
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.journal import open_journal
from vllm_redknot.profiler.row_judge import RowAnswer, RowJudge
from vllm_redknot.profiler.row_model import RowModel
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-folder", type=Path, default=default_folder())
    parser.add_argument("--length", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--questions", type=int, default=50, help="of each data set")
    parser.add_argument("--output", type=Path, default=RESULTS / "row_questions.json")
    arguments = parser.parse_args()
    folder: Path = arguments.model_folder
    heads = target_of_model(folder, settings(heads=None)).profile
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    header = {
        "row_questions": [arguments.length, arguments.questions],
        "model": model_fingerprint(folder),
        "heads": heads.fingerprint(),
    }
    model = RowModel(HookedModel(folder, torch.bfloat16))
    alone: dict[str, list[RowAnswer]] = {}
    skipping: dict[tuple[str, str], list[RowAnswer]] = {}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with open_journal(arguments.output.with_suffix(".journal"), header) as journal:
        for item in qa_items(tokenizer, (arguments.length,), 0, arguments.questions):
            task, asked = item.place.task, item.request
            judge = RowJudge(model, heads, [Case(task, asked.prompt, asked.forced, (0, 0))], journal)
            alone.setdefault(task, []).extend(judge.answers(None))
            for name, schedule in schedules().items():
                skipping.setdefault((task, name), []).extend(judge.answers(schedule))
    rows = [row(task, name, alone[task], answers) for (task, name), answers in skipping.items()]
    document = {
        "machine": describe_machine(),
        "model": {"name": folder.name, "fingerprint": header["model"]},
        "heads": {"fingerprint": heads.fingerprint(), "description": heads.describe()},
        "schedules": {name: schedule.describe() for name, schedule in schedules().items()},
        "rows": rows,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for found in rows:
        print(found)


if __name__ == "__main__":
    main()
