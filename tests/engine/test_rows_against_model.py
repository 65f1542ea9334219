"""Row skipping in the engine against an independent model that skips the same rows, on real weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import Cut
from tests.engine.harness import FP32_BOUND, engine
from tests.engine.head_files import random_heads, write
from tests.engine.rows_oracle import SkippingModel, largest_error, one_value_probe

pytestmark = pytest.mark.slow

LATE = {"ffn_from": 12, "attention_from": 18, "sink": 4, "recent": 40}
SPARSE = {
    "sparse_ffn": {"rule": "relative_norm", "thresholds": {"4": 0.2, "9": 0.05}},
    "ffn_from": 26,
    "attention_from": 26,
    "sink": 0,
    "recent": 33,
}
PREDICTED = {
    **SPARSE,
    "sparse_ffn": {"rule": "predictor", "probes": {"4": one_value_probe(576, 7), "9": one_value_probe(576)}},
}


@pytest.mark.parametrize(
    ("rows", "chunk"),
    [(LATE, 64), (LATE, 2048), (SPARSE, 512), (PREDICTED, 256)],
    ids=["64", "2048", "sparse", "predicted"],
)
def test_logprobs_equal_those_of_a_model_that_skips_the_same_rows(
    rows: dict[str, Any], chunk: int, model_path: Path, cut: Cut, tmp_path: Path
) -> None:
    heads = random_heads(30, 3, seed=chunk)
    prompts = [cut(0, 500), cut(500, 367), cut(900, 20)]
    settings = {"heads": write(tmp_path, heads), "rows": rows}
    with engine(model_path, settings, dtype="float32", max_num_batched_tokens=chunk) as server:
        got = server.complete(prompts, max_tokens=6)
    model = SkippingModel(model_path, torch.float32)
    skipped = []
    for prompt, completion in zip(prompts, got, strict=True):
        expected = model.logprobs(prompt, completion.token_ids, heads, rows)
        assert largest_error(completion, expected) < FP32_BOUND
        skipped.append(model.skipped_ffn_rows)
    # Skipping matters: without it the same model says something else.
    whole = model.logprobs(prompts[0], got[0].token_ids, heads, {})
    assert largest_error(got[0], whole) > 0.05
    assert skipped[2] == 0, "the last prompt is too short to skip"
    if "sparse_ffn" in rows:
        late = (30 - rows["ffn_from"]) * (500 - rows["recent"])
        assert 50 < skipped[0] - late < 2 * (500 - rows["recent"]) - 50, "the threshold tells tokens apart"
