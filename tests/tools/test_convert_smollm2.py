"""The converted test model: right, whole, and never half there."""

from pathlib import Path

import numpy as np
import pytest

from tools import convert_smollm2, smollm2_folder


def permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order for interleaved RoPE: row 2i of a head is row i of its first half, row 2i + 1 of its second."""
    rows, hidden = weight.shape
    head_dim = rows // num_heads
    result = np.empty_like(weight)
    for head in range(num_heads):
        for i in range(head_dim // 2):
            result[head * head_dim + 2 * i] = weight[head * head_dim + i]
            result[head * head_dim + 2 * i + 1] = weight[head * head_dim + head_dim // 2 + i]
    assert result.shape == (rows, hidden)
    return result


@pytest.mark.parametrize("num_heads", [1, 3, 9])
def test_unpermute_restores_rows_in_interleaved_order(num_heads: int) -> None:
    weight = np.random.default_rng(0).standard_normal((num_heads * 8, 5)).astype(np.float32)
    assert np.array_equal(convert_smollm2.unpermute(permuted(weight, num_heads), num_heads), weight)


def fake_conversion(monkeypatch: pytest.MonkeyPatch, content: str = "right") -> None:
    """Replace the conversion by one that writes a single small file, whose checksum is that of "right"."""
    monkeypatch.setattr(convert_smollm2, "source_gguf", lambda: Path("unused"))
    monkeypatch.setattr(convert_smollm2, "convert", lambda _, target: (target / "a").write_text(content))
    digest = "27042f4e6eca7d0b2a7ee4026df2ecfa51d3339e6d122aa099118ecd8563bad9"
    monkeypatch.setattr(smollm2_folder, "CHECKSUMS", {"a": digest})


def test_an_interrupted_conversion_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Path, target: Path) -> None:
        (target / "a").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_smollm2, "source_gguf", lambda: Path("unused"))
    monkeypatch.setattr(convert_smollm2, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_smollm2.install(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_conversion_is_refused_and_the_old_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_conversion(monkeypatch, content="wrong")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(SystemExit, match="not the recorded one"):
        convert_smollm2.install(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "old").read_text() == "old"


def test_a_broken_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_conversion(monkeypatch)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("rotten")
    convert_smollm2.install(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "a").read_text() == "right"


def test_a_second_run_converts_nothing(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_smollm2, "install", lambda _: pytest.fail("converted again"))
    monkeypatch.setattr("sys.argv", ["convert_smollm2", "--model-folder", str(model_path)])
    convert_smollm2.main()


def test_the_tokenizer_splits_digits_and_ends_turns(model_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 1234").input_ids) == ["in", "Ġ", "1", "2", "3", "4"]
    assert tokenizer.decode(tokenizer(" naïve, 東京!\n").input_ids) == " naïve, 東京!\n"
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (
        tokenizer.apply_chat_template(
            [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            add_generation_prompt=True,
            tokenize=False,
        )
        == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
def test_the_model_knows_the_capital_of_france(model_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
