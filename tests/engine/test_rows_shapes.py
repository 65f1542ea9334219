"""Row skipping in other model families, found by structure: against an independent model that skips the same rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

from tests.engine.harness import ALL_GLOBAL, FP32_BOUND, assert_same, engine
from tests.engine.rows_oracle import SkippingModel, largest_error, one_value_probe
from tests.engine.small_models import HIDDEN, LAYERS, Shape, save
from vllm_redknot.attention.kernel_choice import FusedKernels

pytestmark = pytest.mark.slow

ROWS = {"ffn_from": 1, "attention_from": 2, "sink": 3, "recent": 25}
SPARSE = {**ROWS, "sparse_ffn": {"rule": "relative_norm", "thresholds": {"0": 15.5}}}
"""About the median of what layer 0 shows: with these weights attention adds 8 to 27 times the embedding's norm."""
PREDICTED = {**ROWS, "sparse_ffn": {"rule": "predictor", "probes": {"0": one_value_probe(HIDDEN)}}}
EVERYTHING = [[None] * 2] * LAYERS
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
SHARED = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 96,
    "decoder_sparse_step": 1,
}
PLAIN_GEMMA = {
    "sliding_window": 48,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": 64,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
SHAPES = {
    "llama": (Shape(LlamaConfig, 4, 2, 64), EVERYTHING, SPARSE),
    "qwen2_with_biases": (Shape(Qwen2Config, 2, 2, 64), EVERYTHING, ROWS),
    "qwen3_with_qk_norm": (Shape(Qwen3Config, 4, 2, 64), EVERYTHING, ROWS),
    "mistral_own_window": (
        Shape(MistralConfig, 4, 2, 64, {"sliding_window": 50}),
        [[(50, 0)] * 2] * LAYERS,
        ROWS,
    ),
    "gemma2": (Shape(Gemma2Config, 4, 2, 64, PLAIN_GEMMA), [[(48, 0)] * 2, [None] * 2, [(48, 0)] * 2], ROWS),
    "mixtral": (Shape(MixtralConfig, 4, 2, 64, EXPERTS), EVERYTHING, ROWS),
    "qwen2_moe_with_shared_expert": (Shape(Qwen2MoeConfig, 2, 2, 64, SHARED), EVERYTHING, PREDICTED),
}


@pytest.mark.parametrize("name", SHAPES)
def test_other_families_skip_the_same_rows_as_an_independent_model(name: str, tmp_path: Path) -> None:
    shape, heads, rows = SHAPES[name]
    folder = save(shape, tmp_path)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 512, (150 + 61 * i,), generator=generator).tolist() for i in range(2)]
    with engine(
        folder,
        {**ALL_GLOBAL, "rows": rows},
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=512,
        max_num_batched_tokens=96,
        kv_cache_memory_bytes=2**26,
    ) as server:
        got = server.complete(prompts, max_tokens=4)
    model = SkippingModel(folder, torch.float32)
    for completion, prompt in zip(got, prompts, strict=True):
        expected = model.logprobs(prompt, completion.token_ids, heads, rows)
        assert largest_error(completion, expected) < FP32_BOUND
        if "sparse_ffn" in rows:
            skipped = model.skipped_ffn_rows
            late_alone = model.logprobs(prompt, completion.token_ids, heads, ROWS)
            # Each late layer skips all rows that may.
            may_skip = model.skipped_ffn_rows // (LAYERS - ROWS["ffn_from"])
            assert 0.2 * may_skip < skipped - model.skipped_ffn_rows < 0.8 * may_skip
            assert largest_error(completion, late_alone) > 10 * FP32_BOUND
        whole = model.logprobs(prompt, completion.token_ids, heads, {})
        assert largest_error(completion, whole) > 10 * FP32_BOUND


def test_the_published_share_rule_keeps_everything_at_a_share_of_one_and_less_below(tmp_path: Path) -> None:
    folder = save(SHAPES["llama"][0], tmp_path)
    prompt = torch.randint(0, 512, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    answers = []
    for rows in (
        "off",
        *({"sparse_ffn": {"rule": "mass", "start": 1, "share": share}} for share in (1.0, 0.2)),
    ):
        limits = {"max_model_len": 512, "kv_cache_memory_bytes": 2**26, "skip_tokenizer_init": True}
        with engine(folder, {**ALL_GLOBAL, "rows": rows}, dtype="float32", **limits) as server:
            answers += server.complete([prompt], max_tokens=4)
    assert_same(answers[1:2], answers[:1])
    assert answers[2].logprobs != answers[0].logprobs


def test_a_chunk_without_kept_tokens_runs_no_attention_in_late_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(SHAPES["llama"][0], tmp_path)
    attended: list[int] = []
    attend = FusedKernels.attend

    def note(self: FusedKernels, query: torch.Tensor, layout: Any, step: Any, *others: Any) -> None:
        attended.append(step.batch.num_tokens)
        attend(self, query, layout, step, *others)

    monkeypatch.setattr(FusedKernels, "attend", note)
    limits = {"max_model_len": 512, "max_num_batched_tokens": 96, "kv_cache_memory_bytes": 2**26}
    with engine(
        folder, {**ALL_GLOBAL, "rows": ROWS}, dtype="float32", skip_tokenizer_init=True, **limits
    ) as server:
        attended.clear()
        server.complete([list(range(300))], max_tokens=2)
    # Chunks of 96, 96, 96 and 12 tokens, then one of the answer; the last of three layers is late. 3 tokens are sinks,
    # and the last 25 begin in the third chunk.
    assert attended == [96, 96, 3, 96, 96, 96, 96, 13, 12, 12, 12, 1, 1, 1]
