"""What repair policies cost: the figures of one engine's answers, and tables of them.

Answers are by policy, then by case. "dense" is no policy: everything was computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Final

from vllm_redknot.evals.requests import Answer
from vllm_redknot.evals.reuse_cases import ReuseCase
from vllm_redknot.evals.reuse_requests import Range, reusable, spared
from vllm_redknot.evals.reuse_scores import figures
from vllm_redknot.evals.reuse_verdict import Limits, checks
from vllm_redknot.evals.score import Score
from vllm_redknot.evals.statistics import compare

DENSE: Final = "dense"
NONE: Final = "none"
BOTH: Final = "both data sets"
SHOWN: Final = (
    *(("needle", "found"), ("needle", "nll"), ("named", "found"), ("named", "nll")),
    *(("squad", "f1"), ("hotpotqa", "f1"), (BOTH, "f1")),
)
"""What the table shows, and what is compared with no repair too."""
Answers = Mapping[str, Mapping[str, Answer]]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Policy:
    """What is recomputed.

    Attributes:
        name: of its answers, no slash in it.
        wish: what a request says of it, besides its documents.
        boundary: first tokens of a moved document that are recomputed.
        share: of a moved document's tokens, what is chosen on an early layer; None for the boundary.
    """

    name: str
    wish: Mapping[str, Any]
    boundary: int = 0
    share: float | None = None

    def reused(self, documents: Sequence[Range]) -> int:
        """Tokens of these stored documents whose KV should come from the store."""
        return reusable(documents, self.boundary) if self.share is None else spared(documents, self.share)


def boundary_policy(tokens: int) -> Policy:
    """The first tokens of every moved document."""
    return Policy(f"boundary-{tokens}" if tokens else NONE, {"boundary": tokens}, tokens)


def blend_policy(share: float) -> Policy:
    """The tokens of every moved document that deviate most."""
    return Policy(f"blend-{share:g}", {"policy": "blend", "share": share}, share=share)


def case_name(case: ReuseCase) -> str:
    """The same for all policies: task, text or question, place."""
    return case.dense.key.split("/", 1)[1]


def results(
    cases: Sequence[ReuseCase], policies: Sequence[Policy], answers: Answers, seed: int
) -> list[dict[str, Any]]:
    """What every policy computed, its figures beside dense's, its budget as the gate has it, and against no repair."""
    found = []
    for policy in policies:
        scores = _compared(cases, answers[DENSE], answers[policy.name])
        cells = in_cells(scores, seed)
        verdicts = checks(scores, cells, Limits())
        found.append(
            {
                "policy": policy.name,
                "wish": dict(policy.wish),
                "computed": computed(cases, answers[policy.name]),
                "figures": cells,
                "checks": [asdict(check) for check in verdicts],
                "budget_kept": all(check.passed for check in verdicts),
                "against_none": list(_against_none(cases, answers, policy, seed)),
            }
        )
    return found


def in_cells(scores: Sequence[Score], seed: int) -> list[Cell]:
    """The gate's figures, and F1 over both data sets; each says whether its mean lies in dense's 95% interval."""
    questions = [score for score in scores if score.metric == "f1"]
    pooled = compare(
        [score.stock or 0.0 for score in questions], [score.redknot for score in questions], seed, "f1"
    )
    assert pooled.stock is not None
    assert pooled.difference is not None
    both = {
        **{"task": BOTH, "metric": "f1", "position": None, "n": pooled.n},
        **{"dense": pooled.stock.to_json(), "reuse": pooled.redknot.to_json()},
        **{"difference": pooled.difference.to_json(), "within_noise": pooled.within_noise},
    }
    return [{**cell, "within_dense_interval": _within(cell)} for cell in (*figures(scores, seed), both)]


def computed(cases: Sequence[ReuseCase], answers: Mapping[str, Answer]) -> dict[str, Any]:
    """Prompt tokens that went through all layers, means: of each task, of all, and as a share of all."""
    by_task: dict[str, list[int]] = {}
    for case in cases:
        name = case_name(case)
        by_task.setdefault(name.split("/")[0], []).append(len(case.dense.prompt) - answers[name].reused)
    everything = [tokens for found in by_task.values() for tokens in found]
    return {
        **{task: round(fmean(found), 1) for task, found in by_task.items()},
        "all": round(fmean(everything), 1),
        "share": round(sum(everything) / sum(len(case.dense.prompt) for case in cases), 4),
    }


def samples(
    cases: Sequence[ReuseCase], policies: Sequence[Policy], answers: Answers
) -> Iterator[dict[str, Any]]:
    """Per case what it scored and how many tokens of its prompt were computed, dense and with every policy."""
    for case in cases:
        name = case_name(case)
        asked: dict[str, Any] = {"case": name, "prompt_tokens": len(case.dense.prompt)}
        for policy in policies:
            answer = answers[policy.name][name]
            scores = case.score(answers[DENSE][name], answer)
            asked[DENSE] = {
                score.metric: round(score.stock, 6) for score in scores if score.stock is not None
            }
            asked[policy.name] = {
                "computed": len(case.dense.prompt) - answer.reused,
                **{score.metric: round(score.redknot, 6) for score in scores},
            }
        yield asked


def smallest_boundary(runs: Sequence[Mapping[str, Any]]) -> int | None:
    """The smallest boundary that keeps the gate's budget in every run."""
    kept = [
        {
            result["wish"]["boundary"]
            for result in run["results"]
            if result["budget_kept"] and "boundary" in result["wish"]
        }
        for run in runs
    ]
    return min(set.intersection(*kept), default=None)


def table(run: Mapping[str, Any]) -> Iterator[str]:
    """Lines of Markdown: a row per policy. NLL as it differs from dense's; `low`: F1 is below dense's interval."""
    first = _shown(run["results"][0])
    counts = {task: first[task, metric]["n"] for task, metric in SHOWN}
    heads = [
        *("recomputed", "tokens computed"),
        *(f"{task} {metric if metric != 'nll' else 'NLL'}" for task, metric in SHOWN),
        "budget",
    ]
    yield _row(heads)
    yield _row(["---"] * len(heads))
    yield _row(
        [
            *(DENSE, f"{run['prompt_tokens']:,.0f}"),
            *(_dense(first[shown], counts[shown[0]]) for shown in SHOWN),
            "",
        ]
    )
    for result in run["results"]:
        cells = _shown(result)
        tokens = f"{result['computed']['all']:,.0f} ({result['computed']['share']:.1%})"
        kept = "kept" if result["budget_kept"] else "not kept"
        shown = (_policy(cells[shown], counts[shown[0]]) for shown in SHOWN)
        yield _row([result["policy"], tokens, *shown, kept])


def _compared(
    cases: Sequence[ReuseCase], before: Mapping[str, Answer], after: Mapping[str, Answer]
) -> list[Score]:
    names = map(case_name, cases)
    return [
        score
        for case, name in zip(cases, names, strict=True)
        for score in case.score(before[name], after[name])
    ]


def _against_none(cases: Sequence[ReuseCase], answers: Answers, policy: Policy, seed: int) -> Iterator[Cell]:
    if policy.name == NONE or NONE not in answers:
        return
    cells = in_cells(_compared(cases, answers[NONE], answers[policy.name]), seed)
    for cell in cells:
        if cell["position"] is None and (cell["task"], cell["metric"]) in SHOWN:
            yield {key: cell[key] for key in ("task", "metric", "n", "difference", "within_noise")}


def _within(cell: Mapping[str, Any]) -> bool | None:
    dense = cell["dense"]
    return None if dense is None else bool(dense["low"] <= cell["reuse"]["value"] <= dense["high"])


def _shown(result: Mapping[str, Any]) -> dict[tuple[str, str], Cell]:
    return {(cell["task"], cell["metric"]): cell for cell in result["figures"] if cell["position"] is None}


def _dense(cell: Mapping[str, Any], count: int) -> str:
    dense = cell["dense"]
    if cell["metric"] == "found":
        return f"{round(dense['value'] * count)} of {count}"
    return f"{dense['value']:.3f} [{dense['low']:.3f}, {dense['high']:.3f}]"


def _policy(cell: Mapping[str, Any], count: int) -> str:
    reuse, change = cell["reuse"], cell["difference"]
    if cell["metric"] == "found":
        return f"{round(reuse['value'] * count)} of {count}"
    if cell["metric"] == "nll":
        return f"{change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"
    low = " low" if reuse["value"] < cell["dense"]["low"] else ""
    return f"{reuse['value']:.3f} ({change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]){low}"


def _row(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"
