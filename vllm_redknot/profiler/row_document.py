"""What a calibration of row skipping leaves behind: the sections of the head file, and the evidence of the search."""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import fmean
from typing import Any, Final

from vllm_redknot.heads.profile import HeadProfile, ModelIdentity, Provenance
from vllm_redknot.profiler.row_judge import RowLimits
from vllm_redknot.profiler.row_run import RowOutcome, RowPlan
from vllm_redknot.rows.schedule import SECTION

KIND: Final = "redknot.rows"
FORMAT: Final = 1
TOOL: Final = "redknot profile --rows"
METHOD: Final = (
    "the late layers, then the predictors before them, that save most FLOPs while needles, named needles and essays"
    " hold their limits beside the head classes alone"
)
EVIDENCE_SECTION: Final = "row_calibration"


def with_rows(
    outcome: RowOutcome,
    heads: HeadProfile,
    identity: ModelIdentity,
    plan: RowPlan,
    limits: RowLimits,
    data: str,
    date: str,
    versions: dict[str, str | None],
) -> HeadProfile:
    """The head classes with the schedule and its evidence as sections; one that failed is marked provisional."""
    failures = outcome.verdict.failures
    calibration: dict[str, Any] = {
        "tool": TOOL,
        "method": METHOD,
        "data": data,
        "date": date,
        "provisional": bool(failures),
        "failures": list(failures),
        "heads": heads.fingerprint(),
        "limits": {key: value for key, value in asdict(limits).items() if value is not None},
        "savings": outcome.savings.document(),
        "ffn_rows_computed": {
            str(layer): round(share, 4) for layer, share in outcome.verdict.computed.items()
        },
        "held_out": held_out(outcome),
        "plan": plan.document(),
        "versions": versions,
    }
    provenance = heads.provenance or Provenance()
    if failures:
        notes = [provenance.notes] if provenance.notes else []
        provenance = provenance.model_copy(
            update={
                "provisional": True,
                "notes": "; ".join([*notes, *(f"FAILED with rows: {failure}" for failure in failures)]),
            }
        )
    sections = {
        **heads.sections,
        SECTION: outcome.schedule.to_section(),
        EVIDENCE_SECTION: _plain(calibration),
    }
    return replace(heads, identity=identity, provenance=provenance, sections=sections)


def held_out(outcome: RowOutcome) -> list[dict[str, Any]]:
    """Each comparison with the dense model's answers to the same cases beside it."""
    rows = []
    for row in outcome.verdict.comparisons:
        dense = [a for a in outcome.dense if (a.task, a.length) == (row.beside.task, row.beside.length)]
        values = {
            **row.document(),
            "dense_found": sum(answer.found for answer in dense),
            "dense_nll": fmean(answer.nll for answer in dense),
        }
        rows.append(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
        )
    return rows


def evidence(
    outcome: RowOutcome,
    heads: HeadProfile,
    model: dict[str, Any],
    plan: RowPlan,
    limits: RowLimits,
    versions: dict[str, str | None],
) -> dict[str, Any]:
    """The document of kind "redknot.rows": every schedule that was tried, what was chosen, how it was verified."""
    document: dict[str, Any] = _plain(
        {
            "kind": KIND,
            "format": FORMAT,
            "model": model,
            "heads": {"fingerprint": heads.fingerprint(), "description": heads.describe()},
            "tried": [tried.document() for tried in outcome.tried],
            "chosen": {
                "schedule": outcome.schedule.to_section(),
                "description": outcome.schedule.describe(),
                "savings": outcome.savings.document(),
            },
            "verification": {"comparisons": held_out(outcome), "failures": outcome.verdict.failures},
            "limits": asdict(limits),
            "plan": plan.document(),
            "versions": versions,
        }
    )
    return document


def _plain(value: Any) -> Any:
    """Tuples as lists, all the way down: what JSON has."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
