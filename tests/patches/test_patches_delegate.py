"""Where REDKNOT is not asked for, a patched function is the original: same arguments in, same object out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import AttentionSelectorConfig
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from vllm_redknot.kvcache.spec import SinkWindowSpec
from vllm_redknot.patches import (
    cpu_backend_choice,
    early_checks,
    every_patch,
    kv_cache_groups,
    row_graphs,
    row_layers,
    row_prefix_cache,
    row_prompts,
)
from vllm_redknot.plugin import register

PAGE: dict[str, Any] = {"block_size": 32, "num_kv_heads": 1, "head_size": 64, "dtype": torch.bfloat16}


class Original:
    """Keeps what it is called with and answers with one object."""

    def __init__(self) -> None:
        self.answer = object()
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any) -> Any:
        self.calls.append(args)
        return self.answer


def config(backend: str | None, **changes: Any) -> SimpleNamespace:
    """As much of a `VllmConfig` as a stock run's path may look at; anything further is an AttributeError."""
    chosen = None if backend is None else AttentionBackendEnum[backend]
    attention = SimpleNamespace(backend=chosen, backend_per_kind={})
    return SimpleNamespace(attention_config=attention, additional_config={}, **changes)


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()


@pytest.mark.parametrize("backend", [None, "CPU_ATTN", "FLASH_ATTN", "REDKNOT"])
@pytest.mark.parametrize(
    "specs",
    [
        {},
        {"a": FullAttentionSpec(**PAGE)},
        {"a": FullAttentionSpec(**PAGE), "b": SlidingWindowSpec(**PAGE, sliding_window=64)},
    ],
    ids=["nothing", "full", "full and window"],
)
def test_grouping_of_anything_but_head_segments_is_vllms(backend: str | None, specs: dict[str, Any]) -> None:
    original, vllm_config = Original(), config(backend)
    assert kv_cache_groups.wrap(original)(vllm_config, specs) is original.answer
    assert original.calls == [(vllm_config, specs)]
    assert original.calls[0][1] is specs


def test_grouping_of_our_specs_without_our_backend_is_vllms() -> None:
    original, specs = Original(), {"a": SinkWindowSpec(**PAGE, sliding_window=64, num_sink_tokens=4)}
    assert kv_cache_groups.wrap(original)(config("CPU_ATTN"), specs) is original.answer


@pytest.mark.parametrize("backend", [None, "CPU_ATTN", "FLASH_ATTN"])
@pytest.mark.parametrize("attn_type", [AttentionType.DECODER, AttentionType.ENCODER_ONLY])
def test_the_choice_of_another_backend_is_the_platforms(backend: str | None, attn_type: str) -> None:
    original = Original()
    selected = None if backend is None else AttentionBackendEnum[backend]
    layer = AttentionSelectorConfig(64, torch.bfloat16, "auto", 32, attn_type=attn_type)
    choose: Any = cpu_backend_choice.wrap(original)
    assert choose("platform", selected, layer, 9) is original.answer
    assert choose("platform", selected, attn_selector_config=layer) is original.answer
    assert original.calls == [("platform", selected, layer, 9), ("platform", selected, layer, None)]


def test_the_choice_of_redknot_is_its_class() -> None:
    original = Original()
    layer = AttentionSelectorConfig(64, torch.bfloat16, "auto", 32)
    chosen = cpu_backend_choice.wrap(original)("platform", AttentionBackendEnum["REDKNOT"], layer, 9)
    assert chosen == "vllm_redknot.attention.backend.RedknotBackend"
    assert not original.calls


@pytest.mark.parametrize(
    "change", [{"use_mla": True}, {"attn_type": AttentionType.ENCODER_ONLY}], ids=["MLA", "encoder"]
)
def test_a_layer_of_another_kind_gets_vllms_own_backend_with_a_warning(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Original()
    warned: list[str] = []
    monkeypatch.setattr(cpu_backend_choice.logger, "warning", lambda text, *args: warned.append(text % args))
    layer = AttentionSelectorConfig(64, torch.bfloat16, "auto", 32, **change)
    choose: Any = cpu_backend_choice.wrap(original)
    assert choose("platform", AttentionBackendEnum["REDKNOT"], layer, 9) is original.answer
    assert original.calls == [("platform", None, layer, 9)]
    [line] = warned
    assert "vLLM's own backend" in line


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head_size": 72}, "head_size"),
        ({"dtype": torch.float64}, "dtype"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
        ({"block_size": 24}, "block_size"),
        ({"has_sink": True}, "sinks"),
        ({"use_mm_prefix": True}, "multimodal"),
        ({"use_sparse": True}, "sparse"),
        ({"use_rswa": True}, "R-SWA"),
        ({"use_batch_invariant": True}, "batch invariance"),
        ({"use_non_causal": True}, "non-causal"),
        ({"use_dcp": True}, "DCP"),
        ({"use_pcp": True}, "PCP"),
    ],
)
def test_a_layer_redknot_cannot_serve_is_an_error(change: dict[str, Any], reason: str) -> None:
    layer = AttentionSelectorConfig(64, torch.bfloat16, "auto", 32)._replace(**change)
    with pytest.raises(ValueError, match=rf"REDKNOT cannot serve this configuration: .*{reason}"):
        cpu_backend_choice.wrap(Original())("platform", AttentionBackendEnum["REDKNOT"], layer, 9)


def test_the_early_checks_see_the_configuration_after_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    original, vllm_config = Original(), config(None, model_config=None)
    order: list[Any] = []
    monkeypatch.setattr("vllm_redknot.support.check_engine_config", lambda given: order.append(given))
    assert early_checks.wrap(original)("platform", vllm_config) is None
    assert original.calls == [("platform", vllm_config)]
    assert order == [vllm_config]


def test_every_patch_says_what_the_ledger_must_know() -> None:
    for newest in ("kv_cache_planning", "kv_cache_utils"):
        patches = every_patch(lambda name, newest=newest: name.endswith(newest))
        assert len({patch.target for patch in patches}) == len(patches)
        for patch in patches:
            assert all((patch.why, patch.versions, patch.upstream, patch.removable_when)), patch.name


def test_a_model_without_row_skipping_is_loaded_as_it_is() -> None:
    original = Original()
    model = torch.nn.Linear(1, 1)
    forward = model.forward
    row_layers.wrap(original)(model, "model config", "device")
    assert original.calls == [(model, "model config", "device")]
    assert model.forward == forward


def test_a_runner_without_our_layers_runs_as_vllm_has_it() -> None:
    original = Original()
    runner = SimpleNamespace(compilation_config=SimpleNamespace(static_forward_context={"a": object()}))
    assert row_prompts.wrap(original)(runner, 1, 2) is original.answer
    assert row_graphs.wrap(original)(runner, 3, 4) is original.answer
    assert original.calls == [(runner, 1, 2), (runner, 3, 4)]


@pytest.mark.parametrize("backend", [None, "CPU_ATTN"])
def test_a_core_of_another_backend_hashes_blocks_as_vllm_does(backend: str | None) -> None:
    original, hasher = Original(), object()
    core = SimpleNamespace(vllm_config=config(backend), request_block_hasher=hasher)
    assert row_prefix_cache.wrap(original)(core, "request") is original.answer
    assert original.calls == [(core, "request")]
    assert core.request_block_hasher is hasher
    row_prefix_cache.wrap(original)(core, "another")
    assert core.request_block_hasher is hasher
