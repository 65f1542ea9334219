"""Greedy answers of a small model that skips rows, as JSON; a process of its own, for vLLM starts a worker per rank.

Run as a module: the model's folder, the settings of REDKNOT as JSON, and the tensor-parallel size.
"""

from __future__ import annotations

import json
import os
import sys

import torch


def main() -> None:
    """Answers to prompts of several chunks, all at once."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    from vllm import LLM, SamplingParams

    folder, settings, ranks = sys.argv[1:]
    llm = LLM(
        folder,
        attention_backend="REDKNOT",
        additional_config={"redknot": json.loads(settings)},
        tensor_parallel_size=int(ranks),
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=512,
        max_num_batched_tokens=64,
        block_size=32,
        kv_cache_memory_bytes=2**26,
        enforce_eager=True,
    )
    generator = torch.Generator().manual_seed(1)
    prompts = [
        {"prompt_token_ids": torch.randint(0, 512, (150 + i,), generator=generator).tolist()}
        for i in range(3)
    ]
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, detokenize=False, logprobs=0)
    outputs = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
    answers = [
        {
            "tokens": list(one.token_ids),
            "logprobs": [
                step[token].logprob for token, step in zip(one.token_ids, one.logprobs, strict=True)
            ],
        }
        for one in outputs
    ]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
