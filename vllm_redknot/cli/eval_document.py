"""The document of `redknot eval`; docs/cli.md says what its keys mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_redknot.cli.capacity_plan import Server, plan_context
from vllm_redknot.cli.configurations import Configuration
from vllm_redknot.cli.model_file import ModelFile
from vllm_redknot.cli.plan_inputs import ELEMENT_BYTES
from vllm_redknot.cli.target import Target
from vllm_redknot.config import RedknotConfig
from vllm_redknot.evals.fidelity import KL_NOTE, POSITIONS
from vllm_redknot.evals.fingerprints import model_fingerprint, versions
from vllm_redknot.evals.run import Answered
from vllm_redknot.evals.score import Score, cells
from vllm_redknot.evals.suites import Choices, Suite
from vllm_redknot.kvcache.capacity import PageFormat

Compared = tuple[Configuration, Answered, Mapping[Suite, list[Score]]]
"""A configuration, what its engine said, and what that scored beside stock."""
ROWS_NOTE = (
    "fidelity asks for prompt logprobs, and such a request skips no rows: it tells nothing of row skipping, which"
    " needle and qa do"
)


def identity(model: ModelFile, choices: Choices) -> dict[str, Any]:
    """What answers depend on besides the engine and the requests."""
    return {
        "model": model_fingerprint(model.path),
        "suites": list(choices.suites),
        "seed": choices.seed,
        "versions": versions(),
    }


def eval_document(
    target: Target,
    choices: Choices,
    identified: Mapping[str, Any],
    arguments: Mapping[str, Any],
    stock: Answered,
    compared: Sequence[Compared],
    beyond_window: Mapping[int, bool],
) -> dict[str, Any]:
    """Everything the tables show, and what is needed to have it again. The last of `compared` is REDKNOT as asked."""
    model = target.model
    assert model is not None
    whole, ours, _ = compared[-1]
    config = whole.config
    parts = {one.label: _part(model, choices, arguments, one, said, of) for one, said, of in compared}
    last = parts[whole.label]
    return {
        "kind": "redknot.eval",
        "format": 1,
        "model": {
            "name": model.path.resolve().name,
            "fingerprint": identified["model"],
            **model.shape.identity().model_dump(exclude_none=True, exclude={"name"}),
        },
        "heads": {
            "origin": without_folder(target.origin, config, model),
            "description": target.profile.describe(),
            "fingerprint": target.profile.fingerprint(),
            "kv_share": last["kv_share"],
        },
        "row_schedule": last["row_schedule"],
        "versions": identified["versions"],
        "seed": choices.seed,
        "choices": {
            "lengths": list(choices.lengths),
            "depths": list(choices.depths),
            "seeds": choices.seeds,
            "limit": choices.limit,
            "window": choices.window,
            "beyond_window": {str(length): found for length, found in beyond_window.items()},
        },
        "engine": {
            "arguments": {key: value for key, value in arguments.items() if key != "model"},
            "stock": dict(stock.facts),
            "redknot": dict(ours.facts),
        },
        "notes": {
            "kl": KL_NOTE,
            "fidelity": f"means over the last {POSITIONS} tokens before each length, fewer where a shorter length is"
            " nearer",
            "intervals": "95%, percentile bootstrap over cases, 10000 resamples",
            "rows": None if whole.rows is None else ROWS_NOTE,
        },
        "suites": last["suites"],
        "ablation": parts if len(parts) > 1 else None,
    }


def _part(
    model: ModelFile,
    choices: Choices,
    arguments: Mapping[str, Any],
    configuration: Configuration,
    answered: Answered,
    scores: Mapping[Suite, list[Score]],
) -> dict[str, Any]:
    """One configuration beside stock."""
    share = _kv_share(configuration, model, max(choices.lengths), arguments, answered.facts)
    suites = {suite: cells(found, choices.seed) for suite, found in scores.items()}
    return {**configuration.described(), "kv_share": share, "suites": suites}


def without_folder(origin: str, config: RedknotConfig, model: ModelFile) -> str:
    """Where the head classes are from, without the place on this machine: documents are passed on."""
    folders = [model.path] + ([Path(config.heads).expanduser().parent] if config.heads else [])
    for folder in folders:
        origin = origin.replace(f"{folder}/", "")
    return origin


def _kv_share(
    configuration: Configuration,
    model: ModelFile,
    context: int,
    arguments: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> float:
    """KV bytes of a request of `context` tokens relative to stock, as the engine allocates them."""
    server = Server(
        profile=configuration.profile,
        attention_layers=model.shape.attention_layers,
        query_heads=model.shape.num_attention_heads,
        page=PageFormat(model.shape.head_dim, ELEMENT_BYTES[facts["dtype"]], arguments["block_size"]),
        in_flight_tokens=facts["max_in_flight_tokens"],
        max_groups=configuration.config.max_groups,
        tp_size=arguments["tensor_parallel_size"],
        sliding=model.sliding,
    )
    return round(plan_context(server, context).kept_share, 6)
