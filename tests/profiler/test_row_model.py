"""The profiler's forward with skipped rows against the independent model of the engine's tests."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from tests.engine.head_files import Limits, random_heads
from tests.engine.rows_oracle import SkippingModel, one_value_probe
from tests.engine.small_models import HIDDEN, LAYERS, Shape, save
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.profiler.choose import profile_of
from vllm_redknot.profiler.errors import ProfilerError
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.masked import ProfiledAttention, dense_attention
from vllm_redknot.profiler.row_model import FfnInput, RowModel, Rows, rows_of
from vllm_redknot.rows.schedule import RowSchedule

SHAPES = {
    "llama": Shape(LlamaConfig, 4, 2, 64),
    "llama_with_biases": Shape(LlamaConfig, 4, 2, 64, {"attention_bias": True}),
    "qwen2_with_biases": Shape(Qwen2Config, 2, 2, 64),
    "qwen3_with_qk_norm": Shape(Qwen3Config, 4, 2, 64),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "late": {"ffn_from": 1, "attention_from": 2, "sink": 3, "recent": 25},
    "all_layers": {"ffn_from": 0, "attention_from": 0, "sink": 0, "recent": 9},
    "ffn_only": {"ffn_from": 1, "sink": 4, "recent": 40},
    "sparse": {
        "ffn_from": 2,
        "attention_from": 2,
        "sink": 3,
        "recent": 25,
        "sparse_ffn": {"rule": "relative_norm", "thresholds": {"0": 0.7, "1": 0.3}},
    },
}
SCHEDULES["predicted"] = {
    **SCHEDULES["sparse"],
    "sparse_ffn": {
        "rule": "predictor",
        "probes": {"0": one_value_probe(HIDDEN), "1": one_value_probe(HIDDEN, 5)},
    },
}
PROMPT, ANSWER = 180, 12


def profile_like(heads: list[list[Limits]]) -> HeadProfile:
    """The same heads as the engine tests write to files."""
    profile = profile_of([[h and h[0] for h in row] for row in heads], tuple(range(len(heads))), 0)
    sinks = tuple(tuple(h[1] if h else 0 for h in row) for row in heads)
    return HeadProfile(profile.classes, profile.window, sinks, profile.layer_ids)


def medians(model: RowModel, heads: ProfiledAttention, tokens: tuple[int, ...]) -> dict[str, float]:
    """Thresholds of the first two layers below which half of the tokens are when nothing skips."""
    found: dict[str, float] = {}

    def note(layer: int, state: FfnInput) -> None:
        ordered = (state.added / state.residual).sort().values
        # Between two tokens: no rounding decides.
        found[str(layer)] = float(ordered[len(ordered) // 2 :][:2].mean())

    model.run(tokens, 1, heads, Rows(torch.ones(len(tokens), dtype=torch.bool), LAYERS, LAYERS, note))
    return {layer: found[layer] for layer in ("0", "1")}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_those_of_an_independent_model_that_skips_the_same_rows(
    name: str, schedule: str, tmp_path: Path
) -> None:
    shape, rows = SHAPES[name], SCHEDULES[schedule]
    folder = save(shape, tmp_path)
    heads = random_heads(LAYERS, shape.kv_heads, seed=len(schedule))
    generator = torch.Generator().manual_seed(1)
    tokens = tuple(torch.randint(0, 512, (PROMPT + ANSWER,), generator=generator).tolist())
    model = RowModel(HookedModel(folder, torch.float32))
    profile = ProfiledAttention(profile_like(heads))
    if schedule == "sparse":
        rows = {
            **rows,
            "sparse_ffn": {"rule": "relative_norm", "thresholds": medians(model, profile, tokens)},
        }
    made = rows_of(RowSchedule.parse(rows), PROMPT, PROMPT + ANSWER - 1, LAYERS)
    result = model.run(tokens[:-1], ANSWER, profile, made)
    oracle = SkippingModel(folder, torch.float32)
    expected = oracle.logprobs(tokens[:PROMPT], tokens[PROMPT:], heads, rows)
    torch.testing.assert_close(result.logits.log_softmax(-1), expected, atol=2e-4, rtol=1e-4)
    whole = model.run(tokens[:-1], ANSWER, profile)
    assert float((whole.logits - result.logits).abs().max()) > 0.01, "skipping matters"
    if "sparse_ffn" in rows:
        skippable = PROMPT - 28
        skipped = sum(1 - share for share in result.computed.values()) * skippable
        assert skipped + skippable == pytest.approx(oracle.skipped_ffn_rows)
        assert 0.4 * skippable < skipped < 1.6 * skippable, "the thresholds tell tokens apart"


def test_a_pass_that_begins_at_a_kept_state_equals_the_whole_pass_bit_for_bit(tmp_path: Path) -> None:
    folder = save(SHAPES["llama"], tmp_path)
    model = RowModel(HookedModel(folder, torch.float32))
    heads = ProfiledAttention(profile_like(random_heads(LAYERS, 2, seed=3)))
    tokens = tuple(range(200))
    for schedule in SCHEDULES.values():
        rows = rows_of(RowSchedule.parse(schedule), 190, 200, LAYERS)
        kept = model.run(tokens, 5, heads, keep=range(LAYERS)).states
        whole = model.run(tokens, 5, heads, rows)
        first = 0 if "sparse_ffn" in schedule else min(rows.ffn_from, rows.attention_from)
        for layer in range(first + 1):
            again = model.run(tokens, 5, heads, rows, begin=(layer, kept[layer]))
            assert torch.equal(again.logits, whole.logits)


def test_the_last_layer_is_free_because_nothing_reads_its_result(tmp_path: Path) -> None:
    model = RowModel(HookedModel(save(SHAPES["llama"], tmp_path), torch.float32))
    heads = ProfiledAttention(profile_like(random_heads(LAYERS, 2, seed=3)))
    tokens = tuple(range(200))
    last = RowSchedule(ffn_from=LAYERS - 1, attention_from=LAYERS - 1, recent=10)
    skipped = model.run(tokens, 10, heads, rows_of(last, 200, 200, LAYERS))
    torch.testing.assert_close(skipped.logits, model.run(tokens, 10, heads).logits, atol=1e-4, rtol=1e-4)


def test_outside_its_passes_the_model_is_as_before(tmp_path: Path) -> None:
    hooked = HookedModel(save(SHAPES["llama_with_biases"], tmp_path), torch.float32)
    hooked.attention = dense_attention
    tokens = tuple(range(90))
    with torch.inference_mode():
        before = hooked.logits(tokens, 3)
        model = RowModel(hooked)
        rows = rows_of(RowSchedule.parse(SCHEDULES["all_layers"]), 90, 90, LAYERS)
        model.run(tokens, 3, ProfiledAttention(profile_like(random_heads(LAYERS, 2, seed=3))), rows)
        hooked.attention = dense_attention
        assert torch.equal(hooked.logits(tokens, 3), before)


def test_a_mixture_of_experts_is_refused_by_name(tmp_path: Path) -> None:
    extra = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
    }
    folder = save(Shape(Qwen3MoeConfig, 4, 2, 64, extra), tmp_path)
    with pytest.raises(ProfilerError, match=r"model\.layers\.0: .*one dense FFN; found: Qwen3MoeSparseMoe"):
        RowModel(HookedModel(folder, torch.float32))
