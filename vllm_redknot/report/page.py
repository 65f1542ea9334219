"""The page: charts and tables in a template that escapes every string. Nothing in it asks a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vllm_redknot import __version__
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.report import numbers, tables
from vllm_redknot.report.collect import Collected
from vllm_redknot.report.curve_chart import HEIGHT, WIDTH, curve_chart
from vllm_redknot.report.documents import BenchDocument, EvalDocument, Part, ProfileDocument
from vllm_redknot.report.head_map_chart import head_map_chart
from vllm_redknot.report.latency_chart import latency_charts
from vllm_redknot.report.needle_chart import needle_charts
from vllm_redknot.report.score_chart import score_charts

TEMPLATES = Path("templates")
NEEDLE = "needle"


def page(found: Collected) -> str:
    """The whole document as HTML text."""
    environment = Environment(
        loader=PackageLoader("vllm_redknot.report", str(TEMPLATES)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=numbers.shown, tick=numbers.tick, percent=_percent)
    return environment.get_template("report.html.jinja").render(
        version=__version__,
        title=_title(found),
        files=found.names,
        warnings=found.warnings,
        heads=[_heads(name, profile) for name, profile in found.heads],
        profiles=[_profile(name, document) for name, document in found.profiles],
        evals=[_evaluation(name, document) for name, document in found.evals],
        benches=[_bench(name, document) for name, document in found.benches],
        curve_width=WIDTH,
        curve_height=HEIGHT,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _title(found: Collected) -> str:
    models = [document.model for _, document in found.evals]
    models += [document.model for _, document in found.benches]
    models += [document.model for _, document in found.profiles]
    models += [
        profile.identity.name for _, profile in found.heads if profile.identity and profile.identity.name
    ]
    return ", ".join(dict.fromkeys(name[:120] for name in models)) or "head classes"


def _heads(name: str, profile: HeadProfile) -> dict[str, Any]:
    provenance = profile.provenance.model_dump(exclude_none=True) if profile.provenance else {}
    identity = profile.identity.model_dump(exclude_none=True) if profile.identity else {}
    return {
        "file": name,
        "description": profile.describe(),
        "map": head_map_chart(profile),
        "facts": [*tables.pairs(identity), *tables.pairs(provenance)],
        "fingerprint": profile.fingerprint(),
        "warnings": profile.warnings,
    }


def _profile(name: str, document: ProfileDocument) -> dict[str, Any]:
    return {
        "file": name,
        "model": document.model,
        "curve": curve_chart(document),
        "points": document.curve,
        "scores": score_charts(document),
        "verification": tables.pairs(document.verification),
        "chosen": document.chosen,
    }


def _evaluation(name: str, document: EvalDocument) -> dict[str, Any]:
    needles = document.suites.get(NEEDLE, [])
    parts = document.ablation or {}
    return {
        "file": name,
        "model": document.model,
        "heads": document.heads,
        "seed": document.seed,
        "facts": [
            *tables.pairs(document.notes),
            *tables.pairs({"row schedule": document.row_schedule}),
            *tables.pairs(document.versions),
        ],
        "near": [length for length, beyond in document.choices.beyond_window.items() if not beyond],
        "needles": needle_charts(needles),
        "tables": [
            (suite, tables.totals(cells) if suite == NEEDLE else tables.rows(cells))
            for suite, cells in document.suites.items()
        ],
        "names": ["stock", *parts],
        "ablation": [(suite, tables.ablation(suite, parts)) for suite in document.suites],
        "parts": [(name, _part(part)) for name, part in parts.items()],
    }


def _bench(name: str, document: BenchDocument) -> dict[str, Any]:
    return {
        "file": name,
        "model": document.model,
        "heads": document.heads,
        "groups": latency_charts(document),
        "parts": [(name, _part(part)) for name, part in (document.ablation or {}).items()],
        "rows_skipped": _skipped(document.rows_skipped),
        "facts": [
            *tables.pairs({"row schedule": document.row_schedule}),
            *tables.pairs(document.machine),
            *tables.pairs(document.versions),
        ],
    }


def _part(part: Part) -> str:
    """A configuration in a line."""
    shares = [] if part.kv_share is None else [f"{_percent(part.kv_share)} of stock's KV bytes"]
    if part.row_schedule is not None:
        shares.append("skips rows in prefill")
    found = [part.description, *shares, _skipped(part.rows_skipped)]
    return "; ".join(text for text in found if text)


def _skipped(rows: Mapping[str, float] | None) -> str:
    """Shares of prefill rows that were skipped, nothing where none was counted."""
    found = ", ".join(f"{_percent(share)} of {kind} rows" for kind, share in (rows or {}).items())
    return f"skipped in prefill: {found}" if found else ""
