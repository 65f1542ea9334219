"""The settings decide which kernels run; all of them answer alike."""

from pathlib import Path

import pytest
import torch

from tests.engine.harness import assert_same, engine
from tests.engine.head_files import random_heads, write
from tests.engine.small_models import LAYERS, SHAPES, save
from vllm_redknot.attention.kernel_choice import FusedKernels, TorchKernels, choose_kernels
from vllm_redknot.config import RedknotConfig

pytestmark = pytest.mark.slow


def settings(**values: str) -> RedknotConfig:
    return RedknotConfig.from_additional_config({"redknot": values}, environ={})


def test_plain_torch_answers_as_the_fused_kernels(tmp_path: Path) -> None:
    shape = SHAPES["gqa_4"]
    folder = save(shape, tmp_path)
    heads = write(tmp_path, random_heads(LAYERS, shape.kv_heads, seed=3))
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 512, (90 + 70 * i,), generator=generator).tolist() for i in range(3)]
    answers = []
    for kernel in ("auto", "torch"):
        with engine(
            folder,
            {"heads": heads, "kernel": kernel, "cache_dir": str(tmp_path / "cache")},
            dtype="float32",
            skip_tokenizer_init=True,
            max_model_len=512,
            max_num_batched_tokens=96,
            kv_cache_memory_bytes=2**26,
        ) as server:
            answers.append(server.complete(prompts, max_tokens=4, prompt_logprobs=True))
    assert_same(answers[1], answers[0])


def test_the_settings_choose_the_kernels() -> None:
    assert isinstance(choose_kernels(settings(kernel="torch"), "cpu"), TorchKernels)
    # FlashInfer is for GPUs: on a CPU it is only warned about.
    for chosen in (settings(), settings(decode_kernel="flashinfer")):
        assert type(choose_kernels(chosen, "cpu")) is FusedKernels
