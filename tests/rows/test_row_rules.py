"""The rules of sparse FFN rows on made-up norms."""

from __future__ import annotations

import pytest
import torch

from vllm_redknot.rows.rules import MassRule, PredictorRule, RelativeNormRule, ffn_rule
from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.rows.sparse_ffn import Probe


def kept(
    rule: MassRule | RelativeNormRule, attention: list[float], lengths: list[int] | None = None
) -> list[bool]:
    norms = torch.tensor(attention)
    residual = torch.full_like(norms, 2.0)
    result: list[bool] = rule.keep(norms, residual, lengths or [len(attention)]).tolist()
    return result


def test_the_relative_norm_compares_with_the_tokens_own_residual() -> None:
    rule = RelativeNormRule(0.5)
    assert kept(rule, [0.9, 1.0, 1.1, 0.0]) == [False, True, True, False]
    assert rule.keep(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 4.0]), [2]).tolist() == [True, False]


def test_the_relative_norm_does_not_depend_on_the_chunk() -> None:
    norms = [0.3, 1.4, 0.2, 2.0]
    assert kept(RelativeNormRule(0.5), norms, [4]) == kept(RelativeNormRule(0.5), norms, [1, 3])


def test_the_mass_rule_keeps_ranks_strictly_below_the_share_and_the_largest() -> None:
    # Cumulative fractions in falling order: 0.4, 0.7, 0.9, 1.0.
    assert kept(MassRule(0.75), [1.0, 4.0, 2.0, 3.0]) == [False, True, False, True]
    assert kept(MassRule(0.4), [1.0, 4.0, 2.0, 3.0]) == [False, True, False, False]
    assert kept(MassRule(1.0), [1.0, 4.0, 2.0, 3.0]) == [True, True, True, True]
    assert kept(MassRule(0.1), [0.0, 0.0]) == [True, True]


def test_the_mass_rule_depends_on_the_chunk() -> None:
    norms = [1.0, 4.0, 2.0, 3.0]
    assert kept(MassRule(0.5), norms, [4]) == [False, True, False, False]
    assert kept(MassRule(0.5), norms, [1, 3]) == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_predictor_compares_a_weighed_sum_of_the_input(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)  # as vLLM does while it builds a model
        rule = PredictorRule((1.0, -2.0), -0.5)
    finally:
        torch.set_default_dtype(before)
    states = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [1.5, 1.0]], dtype=dtype)
    assert rule.keep(states).tolist() == [True, False, True, True]
    assert rule.scores(states).dtype == torch.float32
    assert rule.keep(states[:0]).tolist() == []
    # Nothing but the token's own state.
    assert torch.cat([rule.keep(states[:1]), rule.keep(states[1:])]).equal(rule.keep(states))


def test_each_layer_has_its_rule() -> None:
    relative = RowSchedule.parse(
        {"ffn_from": 8, "sparse_ffn": {"rule": "relative_norm", "thresholds": {"5": 0.1}}}
    )
    assert [type(ffn_rule(relative, layer)).__name__ for layer in (4, 5, 8)] == [
        "NoneType",
        "RelativeNormRule",
        "NoneType",
    ]
    probes = {"5": Probe.of((0.5,), 1.0).model_dump()}
    predictor = RowSchedule.parse({"ffn_from": 8, "sparse_ffn": {"rule": "predictor", "probes": probes}})
    assert [type(ffn_rule(predictor, layer)).__name__ for layer in (4, 5, 8)] == [
        "NoneType",
        "PredictorRule",
        "NoneType",
    ]
    mass = {"rule": "mass", "start": 2, "share": 0.3, "deep_start": 4, "deep_share": 0.1}
    rules = [ffn_rule(RowSchedule.parse({"sparse_ffn": mass}), layer) for layer in (1, 2, 4)]
    assert [rule.share if isinstance(rule, MassRule) else None for rule in rules] == [None, 0.3, 0.1]
