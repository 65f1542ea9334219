"""FlashInfer's page lists against the oracle's keys, and its route in a mixed layer, without FlashInfer itself."""

import dataclasses
from typing import Any

import pytest
import torch
from cases import Case, Shape, build_case
from flashinfer_stand_in import PagedDecodeStandIn
from interpreted_run import run_interpreted

from vllm_redknot.kernels.layout import GLOBAL_WINDOW
from vllm_redknot.kernels.segpaged_attention.flashinfer import (
    FlashInferDecode,
    page_indices,
    plan_decode,
    route_heads,
)
from vllm_redknot.kernels.segpaged_attention.reference import gather_head

CPU = torch.device("cpu")


def decode_case(lengths: list[int], windows: list[int], page_size: int, seed: int, interleaved: bool) -> Case:
    groups = [(0, 1, 0, 2)[head % 4] for head in range(len(windows))]
    shape = Shape(
        [1] * len(lengths),
        [length - 1 for length in lengths],
        windows,
        [0 if window == GLOBAL_WINDOW else 4 for window in windows],
        groups,
        ratio=2,
        page_size=page_size,
        interleaved=interleaved,
    )
    return build_case(shape, seed)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("page_size", [16, 48, 128])
@pytest.mark.parametrize("seed", range(4))
def test_the_pages_of_every_global_head_hold_exactly_the_oracles_keys_in_order(
    seed: int, page_size: int, interleaved: bool
) -> None:
    lengths = torch.randint(1, 500, (6,), generator=torch.Generator().manual_seed(seed)).tolist()
    lengths += [page_size, page_size + 1, 1]
    windows = [GLOBAL_WINDOW, 30, GLOBAL_WINDOW, GLOBAL_WINDOW]
    case = decode_case(lengths, windows, page_size, seed, interleaved)
    route = route_heads(case.layout)
    assert route.global_heads.tolist() == [0, 2, 3]
    assert route.local_heads.tolist() == [1]
    plan = plan_decode(case.batch.seq_lens, 3, page_size, CPU)
    indices = page_indices(plan, route, case.batch.block_tables).long()
    entry = 0
    for request, length in enumerate(lengths):
        for head in (0, 2, 3):
            pages = indices[plan.indptr[entry] : plan.indptr[entry + 1]]
            keys = (len(pages) - 1) * page_size + int(plan.last_page_len[entry])
            assert keys == length
            table = case.batch.block_tables[int(case.layout.group[head]), request]
            key, value = gather_head(case.layout, head, table, torch.arange(length))
            assert torch.equal(route.keys[pages, :, 0].flatten(0, 1)[:keys], key)
            assert torch.equal(route.values[pages, :, 0].flatten(0, 1)[:keys], value)
            entry += 1
    assert entry == len(plan.last_page_len) == len(plan.indptr) - 1


def test_a_padded_request_lists_no_page() -> None:
    plan = plan_decode(torch.tensor([33, 0, 16], dtype=torch.int32), 2, 16, CPU)
    assert plan.indptr.tolist() == [0, 3, 6, 6, 6, 7, 8]
    assert plan.last_page_len.tolist() == [1, 1, 16, 16, 16, 16]


def test_the_shared_part_of_the_plan_waits_for_no_device() -> None:
    plan = plan_decode(torch.tensor([33, 5], dtype=torch.int32), 2, 16, torch.device("meta"))
    assert plan.entry.shape == plan.request.shape == plan.head.shape == (8,)


def test_layers_with_equally_many_global_heads_share_a_plan_and_keep_their_own_pages() -> None:
    first = decode_case([100, 7, 330], [GLOBAL_WINDOW] * 2, 16, seed=0, interleaved=True)
    # The second layer holds the same segments in the other order.
    flipped = {"base": first.layout.base.flip(0), "group": first.layout.group.flip(0)}
    second = dataclasses.replace(first, layout=dataclasses.replace(first.layout, **flipped))
    made: list[PagedDecodeStandIn] = []

    def make(*args: Any, **kwargs: Any) -> PagedDecodeStandIn:
        made.append(PagedDecodeStandIn(*args, **kwargs))
        return made[-1]

    routes = [route_heads(first.layout), route_heads(second.layout)]
    decode = FlashInferDecode(routes, CPU, make)
    decode.plan(first.batch, first.batch.seq_lens, first.layout, 2, first.softmax_scale)
    for case, route in zip((first, second), routes, strict=True):
        output = case.poisoned_output()
        decode.run(case.query, case.layout, route, case.batch, output, case.softmax_scale)
        error = (output.double() - case.expected(as_dtype=torch.float64)).abs().max().item()
        assert error <= 1e-2
    assert len(made) == 1


def test_only_batches_of_one_token_per_request_are_served() -> None:
    def batch(query_lens: list[int]) -> bool:
        shape = Shape(query_lens, [9] * len(query_lens), (GLOBAL_WINDOW,), (0,), (0,))
        return FlashInferDecode.serves(build_case(shape, seed=0).batch)

    assert batch([1, 1])
    assert not batch([1, 2])
    assert not batch([1, 0])


def test_layouts_that_flashinfer_cannot_read_are_refused() -> None:
    layout = decode_case([40], [GLOBAL_WINDOW] * 2, 16, 0, interleaved=False).layout
    with pytest.raises(ValueError, match="whole pages"):
        route_heads(dataclasses.replace(layout, base=layout.base + torch.tensor([0, 32])))
    with pytest.raises(ValueError, match="FlashInfer's decode serves"):
        route_heads(dataclasses.replace(layout, head_size=80))
    with pytest.raises(ValueError, match="valid: cpu"):
        plan_decode(torch.empty(3, dtype=torch.int32, device="meta"), 1, 16, CPU)


@pytest.mark.slow
def test_a_layer_of_mixed_heads_matches_the_oracle_through_both_kernels() -> None:
    run_interpreted("flashinfer_route.py")
