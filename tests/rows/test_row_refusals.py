"""What row skipping is not served with is refused in one line that names the remedy; requests are told apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams

from vllm_redknot.refusals import refusals_of_rows
from vllm_redknot.rows.requests import skips_rows
from vllm_redknot.rows.schedule import RowSchedule
from vllm_redknot.rows.sparse_ffn import Probe

LATE = RowSchedule.parse({"ffn_from": 1})
PROBES = {"0": Probe.of((1.0,), 0.0).model_dump()}
PREDICTED = RowSchedule.parse({"sparse_ffn": {"rule": "predictor", "probes": PROBES}})
SPARSE = RowSchedule.parse({"sparse_ffn": {"rule": "relative_norm", "thresholds": {"0": 0.1}}})


def config(**changes: Any) -> SimpleNamespace:
    """What of a `VllmConfig` decides."""
    values = {
        "compilation_config": SimpleNamespace(mode=0, cudagraph_mode=SimpleNamespace(value=0)),
        "model_config": SimpleNamespace(is_moe=False),
        "parallel_config": SimpleNamespace(data_parallel_size=1),
        "use_v2_model_runner": False,
        "lora_config": None,
        "kv_transfer_config": None,
    }
    return SimpleNamespace(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_v2_model_runner": True}, "row skipping with Model Runner V2: set VLLM_USE_V2_MODEL_RUNNER=0"),
        ({"lora_config": object()}, "row skipping with LoRA: remove --enable-lora"),
        (
            {"kv_transfer_config": SimpleNamespace(kv_connector_module_path=None)},
            "row skipping with a KV connector: remove --kv-transfer-config",
        ),
        (
            {
                "model_config": SimpleNamespace(is_moe=True),
                "parallel_config": SimpleNamespace(data_parallel_size=2),
            },
            "row skipping with data parallelism of experts",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_served_is_refused_with_a_remedy(changes: dict[str, Any], message: str) -> None:
    [refusal] = refusals_of_rows(config(**changes), LATE)
    assert str(refusal).startswith(message)
    assert str(refusal).endswith('or give {"redknot": {"rows": "off"}}')
    assert refusals_of_rows(config(), LATE) == []


def test_the_connector_of_reuse_is_served() -> None:
    own = SimpleNamespace(kv_connector_module_path="vllm_redknot.reuse.connector")
    assert refusals_of_rows(config(kv_transfer_config=own), LATE) == []


def test_compilation_is_refused_for_rules_that_need_norms_only() -> None:
    compiled = config(compilation_config=SimpleNamespace(mode=3, cudagraph_mode=SimpleNamespace(value=0)))
    assert refusals_of_rows(compiled, LATE) == []
    assert refusals_of_rows(compiled, PREDICTED) == []
    assert 'the sparse_ffn rule "relative_norm" and torch.compile' in str(
        refusals_of_rows(compiled, SPARSE)[0]
    )


def test_requests_that_need_every_state_or_say_so_do_not_skip() -> None:
    assert skips_rows(SamplingParams())
    assert skips_rows(SamplingParams(extra_args={"another": 1}))
    assert skips_rows(SamplingParams(extra_args={"redknot_rows": "on"}))
    assert not skips_rows(SamplingParams(extra_args={"redknot_rows": "off"}))
    assert not skips_rows(SamplingParams(prompt_logprobs=0))
    assert not skips_rows(None)
