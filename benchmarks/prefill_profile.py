"""Where the time of one prefill goes: wall time of each kind of module, in an engine of this process, eager, on a CPU.

`python -m benchmarks.prefill_profile --length 7500` prints seconds by kind as its last line. A module's time is its
own: what modules inside of it take is theirs. Hooks cost some microseconds a call; `total` is measured with them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.serve import Prompts
from tools.smollm2_folder import default_folder

CHUNK = 2048
"""Tokens of a step: what `vllm serve` takes on a CPU."""
ENGINE = "engine, sampling and the rest"
ROWS_METRIC = "vllm:redknot_prefill_rows_total"


class ModuleTimes:
    """Seconds by kind, of modules that run one inside another on one thread."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[tuple[str, float]] = []  # kind, and when it began or went on

    def enter(self, kind: str) -> None:
        """A module begins; the one around it waits."""
        now = self._clock()
        self._charge(now)
        self._open.append((kind, now))

    def leave(self) -> None:
        """The innermost module ends."""
        now = self._clock()
        self._charge(now)
        self._open.pop()
        if self._open:
            self._open[-1] = (self._open[-1][0], now)

    def _charge(self, now: float) -> None:
        if self._open:
            kind, since = self._open[-1]
            self.seconds[kind] += now - since


def kinds(model: Any) -> Iterator[tuple[Any, str]]:
    """The modules that are timed, each with its kind."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.layernorm import RMSNorm
    from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    modules = dict(model.named_modules())
    for path, module in modules.items():
        if isinstance(module, Attention):
            around, _, _ = path.rpartition(".")
            layer, _, _ = around.rpartition(".")
            yield module, "attention kernel and KV write"
            yield modules[around], "attention, besides (packing rows)"
            yield modules[layer], "decoder layer, besides"
            for child in modules[around].children():
                if isinstance(child, QKVParallelLinear):
                    yield child, "qkv projection"
                elif isinstance(child, RowParallelLinear):
                    yield child, "output projection"
                elif isinstance(child, RotaryEmbeddingBase):
                    yield child, "rotary embedding"
            for child in modules[layer].children():
                if child is not modules[around] and not isinstance(child, RMSNorm):
                    yield child, "feed-forward network"
        elif isinstance(module, RMSNorm):
            yield module, "norms"
        elif isinstance(module, LogitsProcessor):
            yield module, "logits"
        elif type(module) is VocabParallelEmbedding:
            yield module, "embedding"


def watch(model: Any) -> ModuleTimes:
    """Times that grow whenever the model runs."""
    times, seen = ModuleTimes(), set[int]()
    for module, kind in kinds(model):
        # A rotary embedding serves all layers.
        if id(module) in seen:
            continue
        seen.add(id(module))
        module.register_forward_pre_hook(lambda *_, kind=kind: times.enter(kind))
        module.register_forward_hook(lambda *_: times.leave())
    return times


def ffn_rows_skipped() -> Counter[int]:
    """By layer, since the engine of this process started."""
    import prometheus_client

    counts: Counter[int] = Counter()
    for metric in prometheus_client.REGISTRY.collect():
        for sample in metric.samples:
            labels = sample.labels
            if sample.name == ROWS_METRIC and (labels["kind"], labels["outcome"]) == ("ffn", "skipped"):
                counts[int(labels["layer"])] += round(sample.value)
    return counts


def profile(model: Path, length: int, redknot: dict[str, Any] | None) -> dict[str, Any]:
    """Of one prompt of `length` tokens and its first token: seconds by kind, and the FFN rows that each layer skipped.

    A short prompt goes before that is not timed.
    """
    # One process, so that the modules are in reach; vLLM reads this when it is imported.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(model),
        attention_backend="CPU_ATTN" if redknot is None else "REDKNOT",
        additional_config={} if redknot is None else {"redknot": redknot},
        max_model_len=8192,
        max_num_batched_tokens=CHUNK,
        block_size=32,
        kv_cache_memory_bytes=2**29,
        enforce_eager=True,
        seed=0,
    )
    params = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
    prompts = Prompts(model)

    def ask(tokens: int) -> float:
        prompt = {"prompt_token_ids": prompts.take(tokens)}
        started = time.perf_counter()
        llm.generate(prompt, params, use_tqdm=False)
        return time.perf_counter() - started

    (times,) = llm.apply_model(watch)
    ask(64)
    times.seconds.clear()
    before = ffn_rows_skipped()
    total = ask(length)
    skipped = {str(layer): rows - before[layer] for layer, rows in sorted(ffn_rows_skipped().items())}
    seconds = {**times.seconds, ENGINE: total - sum(times.seconds.values())}
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return {"tokens": length, "total": total, "seconds": dict(ordered), "ffn_rows_skipped": skipped}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-folder", type=Path, default=default_folder(), help="folder of the model")
    parser.add_argument("--length", type=int, default=7500, help="tokens of the prompt")
    parser.add_argument("--settings", type=json.loads, help="REDKNOT's settings; without it stock vLLM")
    arguments = parser.parse_args()
    found = profile(arguments.model_folder, arguments.length, arguments.settings)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
