"""With torch.compile the modules that skip rows, predictors included, stay opaque calls; CUDA graphs are for decode."""

from pathlib import Path
from typing import Any

import pytest
from vllm.config import CUDAGraphMode
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher

from tests.engine.conftest import Cut
from tests.engine.harness import ALL_GLOBAL, assert_same, engine
from tests.engine.rows_oracle import one_value_probe
from tests.engine.small_models import SHAPES, save

pytestmark = pytest.mark.slow

PREDICTOR = {"rule": "predictor", "probes": {"18": one_value_probe(576)}}
ROWS = {"rows": {"ffn_from": 20, "attention_from": 24, "sparse_ffn": PREDICTOR}}


def test_steps_in_which_tokens_skip_are_kept_out_of_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []
    dispatch = CudagraphDispatcher.dispatch

    def noted(self: CudagraphDispatcher, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        asked.append((num_tokens, kwargs.get("valid_modes") == {CUDAGraphMode.NONE}))
        return dispatch(self, num_tokens, *args, **kwargs)

    small = {"max_model_len": 512, "kv_cache_memory_bytes": 2**26, "skip_tokenizer_init": True}
    rows = {**ALL_GLOBAL, "rows": {"ffn_from": 1, "recent": 128}}
    with engine(save(SHAPES["gqa_4"], tmp_path), rows, max_num_batched_tokens=100, **small) as server:
        monkeypatch.setattr(CudagraphDispatcher, "dispatch", noted)
        server.complete([list(range(301))], max_tokens=3)
    # Tokens up to 301 - 128 may skip: in the first two chunks. The last two, and decode, may have a graph.
    assert asked == [(100, True), (100, True), (100, False), (1, False), (1, False), (1, False)]


def test_compiled_answers_equal_eager_ones(model_path: Path, cut: Cut) -> None:
    prompts = [cut(5000 * i, length) for i, length in enumerate((31, 300, 700))]
    with engine(model_path, ROWS, dtype="float32") as eager:
        expected = eager.complete(prompts)
    with engine(model_path, ROWS, dtype="float32", enforce_eager=False) as compiled:
        got = compiled.complete(prompts)
    assert_same(got, expected)
