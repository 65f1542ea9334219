"""What a run leaves behind: the head profile with its provenance, and the evidence `redknot report` draws."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Final

from vllm_redknot.heads.profile import HeadProfile, ModelIdentity, Provenance
from vllm_redknot.profiler.run import Budget, Outcome, Plan

KIND: Final = "redknot.profile"
FORMAT: Final = 1
TOOL: Final = "redknot profile"
METHOD: Final = (
    "integrated gradients of the answer's likelihood over gates between windows;"
    " then the windows of most value per KV token"
)


def with_provenance(
    outcome: Outcome,
    identity: ModelIdentity,
    plan: Plan,
    budget: Budget,
    data: str,
    date: str,
    versions: dict[str, str | None],
) -> HeadProfile:
    """The profile, saying how it was made and how it did; a profile that failed is marked provisional."""
    failures = outcome.verdict.failures
    parameters: dict[str, Any] = {
        "plan": plan.document(),
        "budget": asdict(budget),
        "kv_share": round(outcome.kv_share, 4),
        "versions": versions,
    }
    provenance = Provenance(
        tool=TOOL,
        method=METHOD,
        data=data,
        date=date,
        notes="; ".join(f"FAILED {failure}" for failure in failures) or _summary(outcome),
        provisional=bool(failures),
        parameters=_plain(parameters),
    )
    return replace(
        outcome.profile, identity=identity, provenance=provenance, source_format="native version 1"
    )


def evidence(
    outcome: Outcome, model: dict[str, Any], plan: Plan, budget: Budget, versions: dict[str, str | None]
) -> dict[str, Any]:
    """The document of kind "redknot.profile": all scores, what was chosen, how it was verified."""
    scores = outcome.scores
    shown = {f"value, {task}": _totals(values) for task, values in scores.values.items()}
    # An essay has no needle to retrieve.
    mass = {task: matrix for task, matrix in scores.mass.items() if task != "essays"}
    for name, matrices in (("retrieval mass", mass), ("output deviation", scores.deviation)):
        shown |= {f"{name}, {task}": matrix for task, matrix in matrices.items()}
    document: dict[str, Any] = _plain(
        {
            "kind": KIND,
            "format": FORMAT,
            "model": model,
            "shape": [outcome.profile.num_layers, outcome.profile.num_kv_heads],
            "scores": shown,
            "steps": {"windows": [*scores.windows, None], "values": scores.values},
            "curve": [],
            "chosen": {
                "kv_share": outcome.kv_share,
                "context": budget.context,
                "fingerprint": outcome.profile.fingerprint(),
                "description": outcome.profile.describe(),
            },
            "verification": outcome.verdict.document(),
            "plan": plan.document(),
            "versions": versions,
        }
    )
    return document


def _totals(values: list[list[list[float]]]) -> list[list[float]]:
    return [[sum(steps) for steps in heads] for heads in values]


def _summary(outcome: Outcome) -> str:
    rows = []
    for row in outcome.verdict.comparisons:
        nll = f"NLL {row.nll:.3f} (dense {row.dense_nll:.3f})"
        found = "" if row.task == "essays" else f"{row.found} of {row.n} (dense {row.dense_found}), "
        rows.append(f"{row.task} at {row.length}: {found}{nll}")
    return f"Held out: {'; '.join(rows)}"


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down: what JSON has."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
