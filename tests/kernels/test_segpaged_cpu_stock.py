"""Accuracy beside stock vLLM's CPU attention: same inputs, all heads global, error against the fp64 oracle."""

import random

import pytest
import torch
from cases import HEAD_SIZES, Case, Shape, build_case

from vllm_redknot.kernels.layout import GLOBAL_WINDOW
from vllm_redknot.kernels.segpaged_attention import segpaged_attention
from vllm_redknot.kernels.segpaged_attention.reference import gather_head

ops = pytest.importorskip(
    "vllm._custom_ops", reason="compares with stock vLLM's CPU kernels: vLLM is not installed"
)


def stock_attention(case: Case) -> torch.Tensor:
    """Stock's result for `case`: its keys and values gathered from their segments into stock's cache."""
    layout, batch, query = case.layout, case.batch, case.query[: case.batch.num_tokens].contiguous()
    heads, size, page = layout.num_kv_heads, layout.head_size, 32
    isa = "vec" if size % 32 == 0 else "vec16"
    lengths = batch.seq_lens.tolist()
    pages = [-(-length // page) for length in lengths]
    cache = torch.zeros((sum(pages), heads, 2 * page, size), dtype=query.dtype)
    key_cache, value_cache = cache.chunk(2, dim=2)
    tables = torch.zeros((len(lengths), max(pages)), dtype=torch.int32)
    for request, length in enumerate(lengths):
        first = sum(pages[:request])
        tables[request, : pages[request]] = torch.arange(first, first + pages[request], dtype=torch.int32)
        if batch.cu_seqlens_q[request] == batch.cu_seqlens_q[request + 1]:
            continue
        rows = [
            gather_head(layout, h, batch.block_tables[int(layout.group[h]), request], torch.arange(length))
            for h in range(heads)
        ]
        key, value = (torch.stack([row[part] for row in rows], dim=1) for part in (0, 1))
        slots = first * page + torch.arange(length)
        ops.cpu_attn_reshape_and_cache(key, value, key_cache, value_cache, slots, isa)
    metadata = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=len(lengths),
        num_heads=query.shape[1],
        num_kv_heads=heads,
        head_dim=size,
        seq_lens=batch.seq_lens,
        dtype=query.dtype,
        query_start_loc=batch.cu_seqlens_q,
        causal=True,
        sliding_window_size=-1,
        isa=isa,
        enable_kv_split=True,
    )
    output = torch.empty_like(query)
    ops.cpu_attention_with_kv_cache(
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        output=output,
        query_start_loc=batch.cu_seqlens_q,
        seq_lens=batch.seq_lens,
        scale=case.softmax_scale,
        causal=True,
        alibi_slopes=None,
        sliding_window=-1,
        block_table=tables,
        softcap=0.0,
        scheduler_metadata=metadata,
        s_aux=None,
    )
    return output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_the_error_is_not_above_that_of_stock(head_size: int, dtype: torch.dtype) -> None:
    ours_squared, stock_squared, ours_worst, stock_worst = 0.0, 0.0, 0.0, 0.0
    for seed in range(6):
        rng = random.Random(seed)
        query_lens = [rng.choice([1, 1, rng.randint(2, 90)]) for _ in range(rng.randint(1, 4))]
        contexts = [rng.randint(0, 700) for _ in query_lens]
        heads, ratio = rng.choice([(3, 3), (2, 4), (1, 8), (2, 1)])
        shape = Shape(
            query_lens,
            contexts,
            (GLOBAL_WINDOW,) * heads,
            (0,) * heads,
            (0,) * heads,
            ratio=ratio,
            head_size=head_size,
            page_size=32,
            dtype=dtype,
            scale=rng.choice([0.3, 1.0, 2.0]),
        )
        case = build_case(shape, seed)
        expected = case.expected(as_dtype=torch.float64)
        ours = case.poisoned_output()
        segpaged_attention(case.query, case.layout, case.batch, ours, case.softmax_scale)
        ours_error, stock_error = ours.double() - expected, stock_attention(case).double() - expected
        ours_squared += ours_error.square().sum().item()
        stock_squared += stock_error.square().sum().item()
        ours_worst = max(ours_worst, ours_error.abs().max().item())
        stock_worst = max(stock_worst, stock_error.abs().max().item())
    # In 16 bits both round nearly exact values to the output type. In fp32 the largest single error is chance.
    assert ours_squared**0.5 <= stock_squared**0.5 * 1.01
    assert ours_worst <= stock_worst * (2 if dtype == torch.float32 else 1.05)
