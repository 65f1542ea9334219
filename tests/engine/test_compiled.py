"""With torch.compile the attention stays one opaque call: compiled answers are the eager ones."""

from pathlib import Path

import pytest

from tests.engine.conftest import Cut
from tests.engine.harness import assert_same, engine

pytestmark = pytest.mark.slow


def test_compiled_answers_equal_eager_ones(model_path: Path, cut: Cut) -> None:
    prompts = [cut(5000 * i, length) for i, length in enumerate((5, 31, 300, 700))]
    with engine(model_path, {}, dtype="float32") as eager:
        expected = eager.complete(prompts, prompt_logprobs=True)
    with engine(model_path, {}, dtype="float32", enforce_eager=False) as compiled:
        got = compiled.complete(prompts, prompt_logprobs=True)
    assert_same(got, expected)
