"""`"reuse": "on"` in an engine's configuration: it holds with the receipt of this model and not without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs

from tests.engine.small_models import SHAPES, save
from tests.reuse.test_receipt import DOCUMENT
from vllm_redknot.reuse.identity import fingerprint_of
from vllm_redknot.reuse.receipt import FILE_NAME, Receipt, cached_path, write_receipt
from vllm_redknot.support import resolve_model_heads, resolve_model_rows

Configured = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(SHAPES["gqa_4"], tmp_path_factory.mktemp("model"))


@pytest.fixture
def configured(folder: Path, tmp_path: Path) -> Configured:
    """The engine's configuration with these settings of REDKNOT."""

    def configure(settings: dict[str, Any], **arguments: Any) -> Any:
        common = {
            "heads": "all-global",
            "store": str(tmp_path / "store"),
            "cache_dir": str(tmp_path / "cache"),
        }
        return EngineArgs(
            **{
                "model": str(folder),
                "skip_tokenizer_init": True,
                "dtype": "bfloat16",
                "attention_backend": "REDKNOT",
                "enforce_eager": True,
                "additional_config": {"redknot": {**common, "boundary": 16, **settings}},
                **arguments,
            }
        ).create_engine_config()

    return configure


@pytest.fixture
def receipt(configured: Configured, tmp_path: Path) -> Path:
    """The receipt of the model with all heads global, boundary 16."""
    config = configured({"reuse": "force"})
    fingerprint = fingerprint_of(config, resolve_model_heads(config).profile, None)
    path = tmp_path / "receipt.json"
    write_receipt(path, Receipt.model_validate({**DOCUMENT, "fingerprint": fingerprint.to_json()}))
    return path


def test_on_with_its_receipt_chooses_the_connector_and_tells_it_the_least_boundary(
    configured: Configured, receipt: Path
) -> None:
    config = configured({"reuse": "on", "receipt": str(receipt), "boundary": 32})
    assert config.kv_transfer_config.kv_connector_module_path == "vllm_redknot.reuse.connector"
    assert config.kv_transfer_config.kv_connector_extra_config == {"least_boundary": 16}
    assert config.scheduler_config.scheduler_cls == "vllm_redknot.reuse.span_scheduler.SpanScheduler"


def test_force_needs_no_receipt_and_has_no_least_boundary(configured: Configured) -> None:
    config = configured({"reuse": "force", "boundary": 0})
    assert config.kv_transfer_config.kv_connector_extra_config == {"least_boundary": 0}


def test_a_connector_given_by_hand_does_not_lower_the_least_boundary(
    configured: Configured, receipt: Path
) -> None:
    own = KVTransferConfig(
        kv_connector="SegmentReuseConnector",
        kv_connector_module_path="vllm_redknot.reuse.connector",
        kv_role="kv_both",
        kv_connector_extra_config={"least_boundary": 0},
    )
    config = configured({"reuse": "on", "receipt": str(receipt)}, kv_transfer_config=own)
    assert config.kv_transfer_config.kv_connector_extra_config == {"least_boundary": 16}


def test_a_receipt_in_the_cache_is_found_by_the_models_fingerprint(
    configured: Configured, receipt: Path, tmp_path: Path
) -> None:
    config = configured({"reuse": "force"})
    fingerprint = fingerprint_of(config, resolve_model_heads(config).profile, None)
    cached = cached_path(tmp_path / "cache", fingerprint)
    cached.parent.mkdir(parents=True)
    receipt.rename(cached)
    assert configured({"reuse": "on"}).kv_transfer_config is not None


def test_a_receipt_for_a_schedule_of_rows_is_for_this_one_alone(
    configured: Configured, receipt: Path
) -> None:
    skipping = {"rows": {"ffn_from": 1}}
    config = configured({"reuse": "force", **skipping}, enforce_eager=True)
    fingerprint = fingerprint_of(config, resolve_model_heads(config).profile, resolve_model_rows(config))
    write_receipt(receipt, Receipt.model_validate({**DOCUMENT, "fingerprint": fingerprint.to_json()}))
    given = {"reuse": "on", "receipt": str(receipt)}
    assert configured({**given, **skipping}, enforce_eager=True).kv_transfer_config is not None
    for rows, here in (("off", "''"), ({"ffn_from": 2}, r"'\w{16}'")):
        with pytest.raises(Exception, match=rf"else: rows is {here} here and '\w{{16}}' there"):
            configured({**given, "rows": rows}, enforce_eager=True)


def test_a_receipt_beside_the_model_is_found(configured: Configured, receipt: Path, folder: Path) -> None:
    beside = folder / FILE_NAME
    try:
        beside.write_bytes(receipt.read_bytes())
        assert configured({"reuse": "on"}).kv_transfer_config is not None
    finally:
        beside.unlink()


def test_on_without_a_receipt_names_the_places_and_both_remedies(
    configured: Configured, folder: Path
) -> None:
    with pytest.raises(Exception, match="KV reuse is") as error:
        configured({"reuse": "on"})
    told = str(error.value)
    assert f'KV reuse is "on", and no receipt in {folder / FILE_NAME} or ' in told
    assert f"Run `redknot verify-reuse {folder}`" in told
    assert '{"redknot": {"reuse": "force"}}' in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "arguments", "told"),
    [
        ({"heads": "local"}, {}, r"receipt.json is of something else: heads is '\w+' here and '\w+' there"),
        ({}, {"dtype": "float32"}, "is of something else: dtype is 'float32' here and 'bfloat16' there"),
        ({}, {"hf_overrides": {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}}, "rope is "),
        ({"rows": {"ffn_from": 1}}, {"enforce_eager": True}, r"else: rows is '\w{16}' here and '' there"),
        ({"boundary": 8}, {}, r'boundary is 8 here and 16 there \(give {"boundary": 16}\)'),
        ({"policy": "blend"}, {}, 'policy is "blend" here and "boundary" there'),
        ({"capture": "marked"}, {}, r'KV reuse "on" with documents captured behind others: give'),
    ],
)
def test_a_model_that_is_not_the_receipts_is_refused_with_what_differs(
    settings: dict[str, Any],
    arguments: dict[str, Any],
    told: str,
    configured: Configured,
    receipt: Path,
    local_heads: str,
) -> None:
    if settings.get("heads") == "local":
        settings = {**settings, "heads": local_heads}
    with pytest.raises(Exception, match=told):
        configured({"reuse": "on", "receipt": str(receipt), **settings}, **arguments)


def test_a_receipt_for_blend_is_for_blend_and_tells_the_connector_the_least_share(
    configured: Configured, receipt: Path
) -> None:
    document = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**document, "policy": "blend", "boundary": 0, "share": 0.15}))
    on = {"reuse": "on", "receipt": str(receipt), "policy": "blend"}
    config = configured({**on, "share": 0.2})
    least = {"least_boundary": 0, "least_share": 0.15}
    assert config.kv_transfer_config.kv_connector_extra_config == least
    with pytest.raises(Exception, match=r'share is 0.1 here and 0.15 there \(give {"share": 0.15}\)'):
        configured({**on, "share": 0.1})
    with pytest.raises(Exception, match='policy is "boundary" here and "blend" there'):
        configured({**on, "policy": "boundary"})


@pytest.fixture
def local_heads(tmp_path: Path) -> str:
    from tests.engine.head_files import random_heads, write
    from tests.engine.small_models import LAYERS

    return write(tmp_path, random_heads(LAYERS, SHAPES["gqa_4"].kv_heads, 5))


def test_other_weights_are_another_model(
    configured: Configured, receipt: Path, folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    changed = tmp_path / "changed"
    changed.mkdir()
    for path in folder.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    (weights,) = changed.glob("*.safetensors")
    tensors = load_file(weights)
    tensors[min(tensors)].view(-1)[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(Exception, match=r"is of something else: weights is '\w+' here and '\w+' there"):
        configured({"reuse": "on", "receipt": str(receipt)}, model=str(changed))


def test_a_malformed_receipt_is_refused(configured: Configured, receipt: Path) -> None:
    document = json.loads(receipt.read_text())
    receipt.write_text(json.dumps({**document, "boundary": None}))
    with pytest.raises(Exception, match=r"receipt\.json is no valid receipt: 'boundary': Input should be"):
        configured({"reuse": "on", "receipt": str(receipt)})
