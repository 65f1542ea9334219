"""The document of `redknot verify-reuse`, and the receipt that is made of it; docs/cli.md says what its keys mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_redknot.cli.configurations import row_schedule
from vllm_redknot.cli.eval_document import without_folder
from vllm_redknot.cli.target import Target
from vllm_redknot.config import RedknotConfig
from vllm_redknot.evals.fidelity import TOP
from vllm_redknot.evals.fingerprints import versions
from vllm_redknot.evals.reuse_cases import ReuseCase, ReuseChoices
from vllm_redknot.evals.reuse_scores import figures
from vllm_redknot.evals.reuse_verdict import Limits, checks
from vllm_redknot.evals.run import Answered
from vllm_redknot.reuse.fingerprint import Fingerprint
from vllm_redknot.reuse.policy import BLEND, BOUNDARY
from vllm_redknot.reuse.receipt import (
    FILE_NAME,
    FORMAT,
    KIND,
    Receipt,
    cached_path,
    receipt_path,
    write_receipt,
)

REPAIR = ("boundary", "share", "seed")
"""Of the choices, what the document says of itself; the rest is what was asked."""
CHECKED = ("task", "metric", "rule", "dense", "reuse", "limit", "passed")
KL_NOTE = (
    f"lower bound of KL(dense || reuse) in nats per token of the right answer: over the tokens among the {TOP} most"
    " likely of both, all others being one outcome"
)


@dataclass(frozen=True)
class Result:
    """A run that has been answered."""

    target: Target
    config: RedknotConfig
    choices: ReuseChoices
    arguments: Mapping[str, Any]
    limits: Limits
    cases: Sequence[ReuseCase]
    answered: Answered


def verification(result: Result) -> dict[str, Any]:
    """Everything the tables show, and what is needed to have it again. `receipt` is None: it is not written yet."""
    model, choices, answers = result.target.model, result.choices, result.answered.answers
    assert model is not None
    scores = [
        score
        for case in result.cases
        for score in case.score(answers[case.dense.key], answers[case.reuse.key])
    ]
    cells = figures(scores, choices.seed)
    verdicts = checks(scores, cells, result.limits)
    facts = dict(result.answered.facts)
    rows = row_schedule(result.target, result.config)
    asked = {key: value for key, value in asdict(choices).items() if key not in REPAIR}
    return {
        "kind": "redknot.verify-reuse",
        "format": 1,
        "model": {
            "name": model.path.resolve().name,
            **model.shape.identity().model_dump(exclude_none=True, exclude={"name"}),
        },
        "heads": {
            "origin": without_folder(result.target.origin, result.config, model),
            "description": result.target.profile.describe(),
            "fingerprint": result.target.profile.fingerprint(),
        },
        "row_schedule": None if rows is None else rows.to_section(),
        "fingerprint": facts.pop("fingerprint"),
        "policy": BOUNDARY if choices.share is None else BLEND,
        "boundary": choices.boundary,
        "share": choices.share,
        "seed": choices.seed,
        "asked": asked,
        "versions": versions(),
        "budget": {"needle_recall": result.limits.recall, "nll_increase": result.limits.nll_increase},
        "engine": {
            "arguments": {key: value for key, value in result.arguments.items() if key != "model"},
            **facts,
        },
        "notes": {
            "kl": KL_NOTE,
            "intervals": "95%, percentile bootstrap over cases, 10000 resamples",
        },
        "reused_share": round(
            sum(case.reuse.reused for case in result.cases)
            / sum(len(case.reuse.prompt) for case in result.cases),
            6,
        ),
        "checks": [{**asdict(check), "told": check.told} for check in verdicts],
        "figures": cells,
        "passed": all(check.passed for check in verdicts),
        "receipt": None,
    }


def receipt_of(document: Mapping[str, Any]) -> Receipt:
    """The receipt of a verification whose budget was kept."""
    return Receipt.model_validate(
        {
            "kind": KIND,
            "format": FORMAT,
            **{
                key: document[key]
                for key in (
                    *("fingerprint", "policy", "boundary", "share", "seed", "asked"),
                    *("versions", "budget", "figures"),
                )
            },
            "checks": [{key: check[key] for key in CHECKED} for check in document["checks"]],
        }
    )


def place_receipt(
    document: Mapping[str, Any], output: Path | None, target: Target, config: RedknotConfig
) -> Path:
    """Write the receipt: where the command line says; or beside the model; or, where that cannot be, in the cache.

    Raises:
        OSError: It can be written nowhere.
    """
    receipt = receipt_of(document)
    if output is not None:
        path = receipt_path(output)
        write_receipt(path, receipt)
        return path
    assert target.model is not None
    beside = target.model.path / FILE_NAME
    try:
        write_receipt(beside, receipt)
        return beside
    except OSError:
        cached = cached_path(config.cache_path, Fingerprint.from_json(receipt.fingerprint))
        write_receipt(cached, receipt)
        return cached
