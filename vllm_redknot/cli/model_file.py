"""What a model's config.json says, without transformers and without vLLM: its shape and what its layers keep.

vLLM builds the same shape from its own view of the model (`support.model_shape`); a test compares the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vllm_redknot.cli.errors import CliError
from vllm_redknot.heads.model_shape import LINEAR_KINDS, ModelShape
from vllm_redknot.heads.profile import MAX_HEADS, MAX_LAYERS
from vllm_redknot.heads.readers.duo_attention import TSV_NAME

CONFIG_NAME: Final = "config.json"
INDEX_NAME: Final = "model.safetensors.index.json"
MAX_BYTES: Final = 64 * 2**20
MAX_HEAD_DIM: Final = 2**16
HEAD_SIZES: Final = (64, 80, 96, 128, 192, 256)
"""Head sizes the kernels serve; as in `kernels.layout`, which needs torch."""
FULL_EVERY: Final = {"gemma2": 2, "vaultgemma": 2, "gemma3_text": 6, "cohere2": 4, "exaone4": 4, "olmo3": 4}
"""Model types whose files may leave `layer_types` out: every n-th layer is full, n in `sliding_window_pattern` or this.

transformers fills `layer_types` in by the same rule, and vLLM reads it from there.
"""


@dataclass(frozen=True)
class ModelFile:
    """One config.json.

    Attributes:
        shape: what head classes depend on.
        sliding: attention layer -> its own window in tokens; such a layer keeps it, whatever the head classes say.
        max_context: tokens; None where not stated.
        weight_bytes: of the checkpoint's files, else by arithmetic for plain dense decoders, else None.
        ffn_size: inner width of the feed-forward network; None where not stated, and for Mixtures of Experts.
        refused: what of it REDKNOT does not serve, as far as this file tells.
    """

    path: Path
    shape: ModelShape
    max_context: int | None
    weight_bytes: int | None
    sliding: Mapping[int, int] = field(default_factory=dict)
    ffn_size: int | None = None
    refused: tuple[str, ...] = ()


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds a model's config.json. DuoAttention's lies beside scores, and has no `model_type`."""
    try:
        if not (path / CONFIG_NAME).is_file():
            return False
        return not (path / TSV_NAME).exists() or "model_type" in _read_object(path / CONFIG_NAME)
    except (CliError, OSError):
        return False


def read_model(folder: Path) -> ModelFile:
    """The model in a folder. Raises CliError, naming file, key and remedy."""
    path = folder / CONFIG_NAME
    whole = _read_object(path)
    text = {**whole, **whole["text_config"]} if isinstance(whole.get("text_config"), dict) else whole
    model_type = text.get("model_type")
    if not isinstance(model_type, str):
        raise CliError(f"{path}: no model_type: give the folder of a Hugging Face model")
    layers = _integer(path, text, ("num_hidden_layers", "n_layer", "num_layers"), MAX_LAYERS)
    query_heads = _integer(path, text, ("num_attention_heads", "n_head"), MAX_HEADS)
    hidden = _integer(path, text, ("hidden_size", "n_embd"), 2**24)
    kv_heads = _integer(
        path, text, ("num_key_value_heads",), MAX_HEADS, 1 if text.get("multi_query") else query_heads
    )
    if query_heads % kv_heads:
        raise CliError(
            f"{path}: num_attention_heads is {query_heads} and num_key_value_heads {kv_heads}: REDKNOT needs a multiple"
            " of the second in the first"
        )
    kinds = _layer_kinds(text, layers)
    shape = ModelShape(
        num_layers=layers,
        num_kv_heads=kv_heads,
        num_attention_heads=query_heads,
        head_dim=_integer(path, text, ("head_dim",), MAX_HEAD_DIM, max(1, hidden // query_heads)),
        hidden_size=hidden,
        vocab_size=_integer(path, text, ("vocab_size",), 2**31),
        model_type=model_type,
        model_dir=folder,
        attention_layer_ids=tuple(i for i, kind in enumerate(kinds) if kind not in LINEAR_KINDS)
        if LINEAR_KINDS.intersection(kinds)
        else None,
        intermediate_size=_optional_integer(text.get("intermediate_size")),
        rope_theta=_rope_theta(text),
    )
    return ModelFile(
        path=folder,
        shape=shape,
        max_context=_optional_integer(text.get("max_position_embeddings")),
        weight_bytes=_stored_bytes(folder) or _computed_bytes(text, shape),
        sliding={
            i: window for i, window in _sliding(text, kinds, layers).items() if i in shape.attention_layers
        },
        ffn_size=None if _has_experts(text) else shape.intermediate_size,
        refused=tuple(_refused(text, shape)),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        document = json.loads(content) if len(content) <= MAX_BYTES else None
    except FileNotFoundError as error:
        raise CliError(
            f"{path}: no such file: give a folder that holds a Hugging Face model's {CONFIG_NAME}"
        ) from error
    except NotADirectoryError as error:
        raise CliError(f"{path.parent} is no folder: give the folder of a Hugging Face model") from error
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}: check that it can be read") from error
    except (ValueError, RecursionError) as error:
        raise CliError(f"{path}: is not JSON ({error}): correct it or download it again") from error
    if not isinstance(document, dict):
        raise CliError(f"{path}: is not one JSON object of moderate size: download it again")
    return document


def _optional_integer(value: object) -> int | None:
    # Beyond, floats are not exact and may overflow.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53 else None


def _integer(
    path: Path, text: Mapping[str, Any], keys: tuple[str, ...], high: int, default: int | None = None
) -> int:
    given = next((text[key] for key in keys if text.get(key) is not None), default)
    value = _optional_integer(given)
    if value is None or value > high:
        raise CliError(f"{path}: {keys[0]} is {given!r:.60}: REDKNOT needs an integer from 1 to {high} there")
    return value


def _layer_kinds(text: Mapping[str, Any], layers: int) -> list[str]:
    """What kind each layer is, or nothing where the file does not say."""
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return [str(kind) for kind in kinds]
    other, every = "linear_attention", _optional_integer(text.get("full_attention_interval"))
    if every is None and text["model_type"] in FULL_EVERY:
        stated = _optional_integer(text.get("sliding_window_pattern"))
        other, every = "sliding_attention", stated or FULL_EVERY[text["model_type"]]
    if every is None:
        return []
    return [other if (layer + 1) % every else "full_attention" for layer in range(layers)]


def _sliding(text: Mapping[str, Any], kinds: list[str], layers: int) -> dict[int, int]:
    window = _optional_integer(text.get("sliding_window"))
    if window is None or text.get("use_sliding_window") is False:
        return {}
    if kinds:
        return {layer: window for layer, kind in enumerate(kinds) if kind == "sliding_attention"}
    first = _optional_integer(text.get("max_window_layers")) if text.get("use_sliding_window") else None
    return dict.fromkeys(range(first or 0, layers), window)


def _rope_theta(text: Mapping[str, Any]) -> float | None:
    rope = text.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, dict) else text.get("rope_theta")
    if not isinstance(theta, int | float) or isinstance(theta, bool) or not math.isfinite(theta):
        return None
    return float(theta)


def _stored_bytes(folder: Path) -> int | None:
    """Bytes of the safetensors files, by their index where there is one."""
    if (folder / INDEX_NAME).is_file():
        metadata = _read_object(folder / INDEX_NAME).get("metadata")
        if isinstance(metadata, dict) and (total := _optional_integer(metadata.get("total_size"))):
            return total
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file()) or None


def _computed_bytes(text: Mapping[str, Any], shape: ModelShape) -> int | None:
    """16-bit weights of a plain dense decoder: embeddings, q/k/v/o, a gated MLP, norms."""
    if shape.intermediate_size is None or _has_experts(text) or shape.attention_layer_ids:
        return None
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    attention = hidden * shape.head_dim * (2 * heads + 2 * shape.num_kv_heads)
    layer = attention + 3 * hidden * shape.intermediate_size + 2 * hidden
    tables = 1 if text.get("tie_word_embeddings") else 2
    return 2 * (shape.num_layers * layer + tables * shape.vocab_size * hidden)


def _has_experts(text: Mapping[str, Any]) -> bool:
    return any("expert" in key for key in text)


def _refused(text: Mapping[str, Any], shape: ModelShape) -> list[str]:
    found = []
    if text.get("kv_lora_rank"):
        found.append("MLA models")
    elif shape.head_dim not in HEAD_SIZES:
        found.append(f"heads of size {shape.head_dim} (served: {', '.join(map(str, HEAD_SIZES))})")
    if text.get("is_encoder_decoder"):
        found.append("encoder-decoder models")
    if shape.model_type == "gpt_oss":
        found.append("learned attention sinks")
    if shape.model_type == "bloom" or text.get("alibi") or text.get("position_embedding_type") == "alibi":
        found.append("ALiBi")
    if text.get("num_kv_shared_layers"):
        found.append("layers that share the KV of another layer")
    return found
