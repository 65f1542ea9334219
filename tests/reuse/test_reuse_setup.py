"""Turning reuse on: what an engine's configuration becomes, and what is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs

from tests.engine.small_models import SHAPES, save
from vllm_redknot import refusals
from vllm_redknot.reuse.setup import configure


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(SHAPES["gqa_4"], tmp_path_factory.mktemp("model"))


def config_of(folder: Path, settings: dict[str, Any], **arguments: Any) -> Any:
    return EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        attention_backend="REDKNOT",
        additional_config={"redknot": {"heads": "all-global", **settings}},
        **arguments,
    ).create_engine_config()


def test_force_chooses_the_connector_and_the_scheduler_and_twice_is_once(
    folder: Path, tmp_path: Path
) -> None:
    config = config_of(folder, {"reuse": "force", "store": str(tmp_path)})
    assert config.kv_transfer_config.kv_connector_module_path == "vllm_redknot.reuse.connector"
    assert config.scheduler_config.scheduler_cls == "vllm_redknot.reuse.span_scheduler.SpanScheduler"
    assert config.scheduler_config.disable_hybrid_kv_cache_manager is False
    connector = config.kv_transfer_config
    config.scheduler_config.async_scheduling = True
    configure(config)
    assert config.kv_transfer_config is connector
    assert config.scheduler_config.scheduler_cls == "vllm_redknot.reuse.span_scheduler.AsyncSpanScheduler"


def test_off_chooses_nothing(folder: Path, tmp_path: Path) -> None:
    for settings in ({}, {"reuse": "off"}, {"store": str(tmp_path)}):
        config = config_of(folder, settings)
        assert config.kv_transfer_config is None
        assert config.scheduler_config.scheduler_cls is None


def test_a_store_is_needed(folder: Path) -> None:
    with pytest.raises(Exception, match=r"KV reuse without a store: give .*\"store\""):
        config_of(folder, {"reuse": "force"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "KV reuse with another scheduler"),
        ({"enable_chunked_prefill": False}, "KV reuse without chunked prefill"),
        (
            {"kv_transfer_config": KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")},
            "KV reuse with another KV connector",
        ),
    ],
)
def test_what_reuse_does_not_serve_is_refused_with_a_remedy(
    arguments: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=rf"{message}: remove --.*\"reuse\": \"off\""):
        config_of(folder, {"reuse": "force", "store": str(tmp_path)}, **arguments)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"enforce_eager": False}, "by blend with torch.compile or CUDA graphs: give --enforce-eager"),
        ({"rows": {"ffn_from": 1}}, {}, "by blend with row skipping: give"),
        ({}, {"enable_lora": True}, "by blend with LoRA: remove --enable-lora"),
    ],
)
def test_what_blend_does_not_serve_is_refused_with_a_remedy(
    settings: dict[str, Any], arguments: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    reuse = {"reuse": "force", "store": str(tmp_path), "policy": "blend", **settings}
    with pytest.raises(Exception, match=rf"{message}.*\"policy\": \"boundary\""):
        config_of(folder, reuse, **{"enforce_eager": True, **arguments})


def test_blend_is_served_eagerly(folder: Path, tmp_path: Path) -> None:
    settings = {"reuse": "force", "store": str(tmp_path), "policy": "blend"}
    config = config_of(folder, settings, enforce_eager=True)
    assert config.kv_transfer_config.kv_connector_extra_config == {"least_boundary": 0}


def test_a_vllm_whose_scheduler_was_not_checked_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "vllm_version", lambda: "0.33.0")
    with pytest.raises(Exception, match=r"KV reuse in vLLM 0\.33\.0: use vLLM 0\.32"):
        config_of(folder, {"reuse": "force", "store": str(tmp_path)})


def test_row_skipping_is_served_but_for_the_rule_that_depends_on_chunks(folder: Path, tmp_path: Path) -> None:
    settings = {"reuse": "force", "store": str(tmp_path)}
    config = config_of(folder, {**settings, "rows": {"ffn_from": 1}}, enforce_eager=True)
    assert config.kv_transfer_config.kv_connector_module_path == "vllm_redknot.reuse.connector"
    mass = {"sparse_ffn": {"rule": "mass", "start": 1, "share": 0.2}}
    with pytest.raises(
        Exception, match=r"KV reuse with the sparse_ffn rule \"mass\": give .*\"rows\": \"off\""
    ):
        config_of(folder, {**settings, "rows": mass}, enforce_eager=True)
