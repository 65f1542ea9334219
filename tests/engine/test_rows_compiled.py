"""With torch.compile the modules that skip rows, predictors included, stay opaque calls: answers are the eager ones."""

from pathlib import Path

import pytest

from tests.engine.conftest import Cut
from tests.engine.harness import assert_same, engine
from tests.engine.rows_oracle import one_value_probe

pytestmark = pytest.mark.slow

PREDICTOR = {"rule": "predictor", "probes": {"18": one_value_probe(576)}}
ROWS = {"rows": {"ffn_from": 20, "attention_from": 24, "sparse_ffn": PREDICTOR}}


def test_compiled_answers_equal_eager_ones(model_path: Path, cut: Cut) -> None:
    prompts = [cut(5000 * i, length) for i, length in enumerate((31, 300, 700))]
    with engine(model_path, ROWS, dtype="float32") as eager:
        expected = eager.complete(prompts)
    with engine(model_path, ROWS, dtype="float32", enforce_eager=False) as compiled:
        got = compiled.complete(prompts)
    assert_same(got, expected)
