"""What head classes and row skipping gain, each alone and both: the engines compared, and what arithmetic predicts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_redknot.cli.configurations import configurations
from vllm_redknot.cli.target import settings, target_of_model
from vllm_redknot.heads.profile import HeadProfile, all_global
from vllm_redknot.rows.prefill_flops import DecoderSizes, prefill_work, rows_skipped
from vllm_redknot.rows.schedule import RowSchedule

Engines = dict[str, dict[str, Any] | None]
"""Name -> REDKNOT's settings; None is stock vLLM."""


def ablated(model: Path, heads: Path | None, rows: Mapping[str, Any]) -> Engines:
    """Stock, heads, rows and both. `heads` None is the bundled profile."""
    config = settings(heads=None if heads is None else str(heads), rows=dict(rows))
    parts = configurations(target_of_model(model, config), config, ablation=True)
    return {"stock": None, **{part.label: part.section for part in parts}}


def ffn_computed(schedule: RowSchedule, breakdown: Mapping[str, Any]) -> dict[int, float]:
    """Layer of `sparse_ffn` -> share of the rows that may skip which it computed of the prompt that was taken apart."""
    start, stop = schedule.skippable(breakdown["tokens"])
    return {
        int(layer): 1.0 - skipped / (stop - start)
        for layer, skipped in breakdown["ffn_rows_skipped"].items()
        if stop > start and not schedule.skips_ffn(int(layer))
    }


def predicted(
    model: Path,
    heads: Path | None,
    rows: Mapping[str, Any],
    lengths: Sequence[int],
    breakdown: Mapping[str, Any],
) -> dict[str, Any]:
    """FLOPs of a prefill by engine and length, and the shares of rows skipped; see `prefill_flops`.

    What a sparse FFN skips depends on the text: it is taken to be what it was in `breakdown`, of one prompt.
    """
    config = settings(heads=None if heads is None else str(heads), rows=dict(rows))
    target = target_of_model(model, config)
    described = target.model
    assert described is not None
    assert described.ffn_size is not None
    shape = described.shape
    sizes = DecoderSizes(shape.num_layers, shape.hidden_size, described.ffn_size)
    dense = all_global(shape.attention_layers, shape.num_kv_heads)
    engines: dict[str, tuple[HeadProfile, RowSchedule | None]] = {"stock": (dense, None)}
    for part in configurations(target, config, ablation=True):
        engines[part.label] = (part.profile, part.rows)
    schedule = engines["both"][1]
    assert schedule is not None
    computed = ffn_computed(schedule, breakdown)
    found: dict[str, Any] = {"flops": {}, "rows_skipped": {}, "ffn_computed": computed}
    for length in lengths:
        works = {
            name: prefill_work(
                profile, shape.num_attention_heads, shape.head_dim, sizes, 1, length, skips, computed
            )
            for name, (profile, skips) in engines.items()
        }
        found["flops"][str(length)] = {
            name: {**work.__dict__, "total": work.total} for name, work in works.items()
        }
        skipped = rows_skipped(schedule, shape.attention_layers, shape.num_layers, length, computed)
        found["rows_skipped"][str(length)] = skipped.__dict__
    return found


def breakdowns(model: Path, engines: Engines, length: int) -> dict[str, Any]:
    """Where the time of one prefill goes, by engine, each in a process of its own."""
    found = {}
    for name, redknot in engines.items():
        command = [sys.executable, "-m", "benchmarks.prefill_profile", "--model-folder", str(model)]
        command += ["--length", str(length)]
        if redknot is not None:
            command += ["--settings", json.dumps(redknot)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: the profile of a prefill failed:\n{done.stderr[-4000:]}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
    return found
