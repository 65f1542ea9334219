"""With torch.compile the modules that skip rows stay opaque calls: compiled answers are the eager ones."""

from pathlib import Path

import pytest

from tests.engine.conftest import Cut
from tests.engine.harness import assert_same, engine

pytestmark = pytest.mark.slow

ROWS = {"rows": {"ffn_from": 20, "attention_from": 24}}


def test_compiled_answers_equal_eager_ones(model_path: Path, cut: Cut) -> None:
    prompts = [cut(5000 * i, length) for i, length in enumerate((31, 300, 700))]
    with engine(model_path, ROWS, dtype="float32") as eager:
        expected = eager.complete(prompts)
    with engine(model_path, ROWS, dtype="float32", enforce_eager=False) as compiled:
        got = compiled.complete(prompts)
    assert_same(got, expected)
