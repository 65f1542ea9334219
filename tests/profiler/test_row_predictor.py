"""Importance of FFN rows, and the predictors fitted to it, on a model of which it is known which tokens matter."""

from pathlib import Path

import pytest
import torch
from layered_model import LAYERS, VOCABULARY, cases, write_layered_model

from vllm_redknot.evals.cases import Case
from vllm_redknot.heads.profile import all_global
from vllm_redknot.profiler.hooked import HookedModel
from vllm_redknot.profiler.journal import open_journal
from vllm_redknot.profiler.masked import ProfiledAttention
from vllm_redknot.profiler.row_importance import row_importance
from vllm_redknot.profiler.row_model import RowModel
from vllm_redknot.profiler.row_predictor import SKIPPED_SHARES, fit, fit_probes
from vllm_redknot.rows.rules import PredictorRule
from vllm_redknot.rows.schedule import RowSchedule

FFN, ATTENTION, INDUCTION = 2, 3, 4
"""The FFN of layer 2 is needed of the token "A" alone: the token behind it then knows what stood before."""
LATE = RowSchedule(ffn_from=FFN + 1, attention_from=ATTENTION + 1, sink=4, recent=64)
SECOND = 110
HEADS = all_global(tuple(range(LAYERS)), 2)


@pytest.fixture
def model(tmp_path: Path) -> RowModel:
    write_layered_model(tmp_path / "model", FFN, ATTENTION, INDUCTION)
    return RowModel(HookedModel(tmp_path / "model", torch.float32))


def doubtful(number: int) -> list[Case]:
    """Needles with a second "A", behind which stands something else: what is certain has no curvature."""
    made = []
    for case in cases(number):
        if case.task == "needle":
            tokens = list(case.prompt)
            tokens[SECOND : SECOND + 2] = [VOCABULARY - 1, (case.answer[0] + 1) % (VOCABULARY - 2)]
            made.append(Case(case.task, tuple(tokens), case.answer, case.span))
    return made


def test_the_token_that_the_answer_needs_has_the_importance(model: RowModel) -> None:
    for case in doubtful(4):
        found = row_importance(model, ProfiledAttention(HEADS), case, LATE, [1, FFN], seed=0)
        assert sorted(found) == [1, FFN]
        importance = found[FFN].importance
        assert importance.shape == (len(case.prompt) - LATE.sink - LATE.recent,)
        assert found[FFN].inputs.shape[0] == importance.shape[0]
        # Each "A" most, what stands behind it less, and nothing else.
        first = case.span[0]
        assert set((importance.topk(2).indices + LATE.sink).tolist()) == {first, SECOND}
        needed = (importance > 0).nonzero()[:, 0] + LATE.sink
        assert set(needed.tolist()) == {first, first + 1, SECOND, SECOND + 1}
        # Layer 1 writes nothing.
        assert float(found[1].importance.max()) == 0.0


def test_probes_tell_the_tokens_that_answers_need(model: RowModel, tmp_path: Path) -> None:
    fitting, others = doubtful(9)[4:], doubtful(4)
    with open_journal(tmp_path / "journal", {}) as journal:
        calls: list[int] = []
        probes = fit_probes(model, HEADS, fitting, LATE, journal, lambda: calls.append(1))
        assert len(calls) == len(fitting)
        # As many layers as a quarter of the model, the last before the late ones.
        assert list(probes) == [FFN - 1, FFN]
        assert tuple(probes[FFN]) == SKIPPED_SHARES
        assert fit_probes(model, HEADS, fitting, LATE, journal) == probes, "the journal has them"
        assert len(calls) == len(fitting)
    for seed, case in enumerate(others):
        inputs = row_importance(model, ProfiledAttention(HEADS), case, LATE, [FFN], seed)[FFN].inputs
        for share, probe in probes[FFN].items():
            kept = PredictorRule(probe.values(), probe.threshold).keep(inputs)
            assert kept[case.span[0] - LATE.sink]
            assert kept[SECOND - LATE.sink]
            # Tokens of one kind are equal here: they go together.
            assert float(kept.float().mean()) < 1 - 0.55 * share


def test_a_fit_finds_the_direction_that_tells_tokens_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 24, generator=generator) * torch.linspace(0.1, 10, 24) + 3
    direction = torch.zeros(24)
    direction[[3, 17]] = torch.tensor([1.0, -0.05])
    important = inputs @ direction > (inputs @ direction).quantile(0.9)
    rule = PredictorRule(fit(inputs, important).tolist(), 0.0)
    scores = rule.scores(inputs)
    assert float(important[scores.topk(400).indices].float().mean()) > 0.95


def test_a_value_that_is_always_the_same_weighs_nothing() -> None:
    inputs = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    inputs[:, 1] = 7.9997 + 1e-6 * inputs[:, 1]
    inputs[:, 2] = 0.0
    weights = fit(inputs, inputs[:, 0] > 1)
    assert weights[1:3].tolist() == [0.0, 0.0]
    assert float(weights[0]) > 1


def test_a_fit_without_anything_important_prefers_nothing() -> None:
    weights = fit(torch.randn(50, 3), torch.zeros(50, dtype=torch.bool))
    assert torch.isfinite(weights).all()
    assert float(weights.abs().max()) < 1e-2
