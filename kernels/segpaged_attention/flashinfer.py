"""Decode through FlashInfer: global heads as a batch of single-head requests, local heads through Triton.

FlashInfer's paged decode takes, per batch entry, a list of pages of which only the last may be partly filled. Every
(request, KV head) becomes such an entry, with one KV head and its g query heads; segments share one pool, so their
pages are pages of one cache. That is exact for a global head, whose keys are the prefix [0, length). It is not for a
local head: a window that starts inside a page would show the keys before it, a sink that ends inside a page those
after it, and the decode wrapper has no mask. So local heads, whose cost is bounded anyway, take the Triton kernel in
the same call.

Off unless asked for: not yet run on a GPU.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from vllm_redknot.kernels.layout import GLOBAL_WINDOW, SegmentLayout
from vllm_redknot.kernels.segpaged_attention.batch import Batch

HEAD_SIZES = (64, 128, 256)
WORKSPACE_BYTES = 128 * 2**20  # what FlashInfer's documentation recommends


@dataclass(frozen=True)
class HeadRoute:
    """Which heads of a layer take which kernel, and the layer's segments as pages of one cache. N global heads."""

    global_heads: torch.Tensor  # int64 [N]
    local_heads: torch.Tensor  # int32 [H - N]
    group: torch.Tensor  # int64 [N], block table of each global head
    first_page: torch.Tensor  # int64 [N], page id of block 0 of each global head
    page_step: int  # page ids between block p and block p + 1 of a segment
    keys: torch.Tensor  # [pages, page_size, 1, D], a view of the pool
    values: torch.Tensor  # like keys


def route_heads(layout: SegmentLayout) -> HeadRoute:
    """Split the heads of a layer and number its pages. Once per layer when the cache is made: waits for the GPU.

    Raises:
        ValueError: the head size or dtype is not FlashInfer's, or segments are not whole pages apart.
    """
    if layout.head_size not in HEAD_SIZES or layout.pool.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"head size {layout.head_size} in {layout.pool.dtype}; FlashInfer's decode serves {HEAD_SIZES} in "
            "float16 and bfloat16"
        )
    unit = layout.page_size * layout.token_stride
    origin = int(layout.base.min()) % unit
    if layout.page_stride % unit or bool(((layout.base - origin) % unit).any()):
        raise ValueError(
            f"bases {layout.base.tolist()} and page stride {layout.page_stride} are not whole pages of {unit} "
            "elements apart"
        )
    is_global = layout.window == GLOBAL_WINDOW
    heads = is_global.nonzero()[:, 0]
    shape = ((layout.pool.numel() - origin) // unit, layout.page_size, 1, layout.head_size)
    strides = (unit, layout.token_stride, layout.head_size, 1)
    return HeadRoute(
        global_heads=heads,
        local_heads=(~is_global).nonzero()[:, 0].int(),
        group=layout.group[heads].long(),
        first_page=(layout.base[heads] - origin) // unit,
        page_step=layout.page_stride // unit,
        keys=layout.pool.as_strided(shape, strides, origin),
        values=layout.pool.as_strided(shape, strides, origin + layout.value_offset),
    )


@dataclass(frozen=True)
class DecodePlan:
    """Batch entries (request, global head), request-major, for all layers with the same number N of global heads."""

    indptr: (
        torch.Tensor
    )  # int32 [R * N + 1] on the CPU: pages of entry e are indices[indptr[e] .. indptr[e + 1]]
    last_page_len: torch.Tensor  # int32 [R * N] on the CPU, 1 .. page_size
    request: torch.Tensor  # int64 [indptr[-1]], of each listed page
    head: torch.Tensor  # int64 [indptr[-1]], index into the layer's global heads
    entry: torch.Tensor  # int64 [indptr[-1]], index into the request's row of a block table


def plan_decode(seq_lens: torch.Tensor, num_heads: int, page_size: int, device: torch.device) -> DecodePlan:
    """The part of the page lists that layers share. Waits for no device.

    Args:
        seq_lens: int32 [R] on the CPU, exact.
        num_heads: N.
        page_size: token slots in a page.
        device: where the block tables are.

    Raises:
        ValueError: seq_lens is not on the CPU.
    """
    if seq_lens.device.type != "cpu":
        raise ValueError(f"seq_lens is on {seq_lens.device}; FlashInfer plans on the host: valid: cpu")
    lengths = seq_lens.long().repeat_interleave(num_heads)  # [R * N]
    pages = (lengths + page_size - 1) // page_size
    indptr = torch.zeros(lengths.numel() + 1, dtype=torch.int64)
    torch.cumsum(pages, 0, out=indptr[1:])
    total = int(indptr[-1])
    pages_there = pages.to(device, non_blocking=True)
    starts_there = indptr[:-1].to(device, non_blocking=True)
    number = torch.arange(lengths.numel(), device=device).repeat_interleave(pages_there, output_size=total)
    return DecodePlan(
        indptr=indptr.int(),
        # An empty entry has no page; the length still has to be a legal one.
        last_page_len=((lengths - 1) % page_size + 1).int(),
        request=number // max(1, num_heads),
        head=number % max(1, num_heads),
        entry=torch.arange(total, device=device) - starts_there[number],
    )


def page_indices(plan: DecodePlan, route: HeadRoute, block_tables: torch.Tensor) -> torch.Tensor:
    """int32 [indptr[-1]]: the pages of every entry in one layer. `block_tables` int32 [G, R, P]."""
    block = block_tables[route.group[plan.head], plan.request, plan.entry]
    return (route.first_page[plan.head] + block.long() * route.page_step).int()


class FlashInferDecode:
    """Decode batches of one engine: `plan` once per step, then `run` for each layer.

    FlashInfer schedules from lengths alone, so layers with equally many global heads share one plan; each layer writes
    its own pages into the index buffer that the wrapper was given, just before it runs.
    """

    def __init__(
        self,
        routes: Iterable[HeadRoute],
        device: torch.device,
        make_wrapper: Callable[..., Any] | None = None,
    ) -> None:
        """
        Args:
            routes: of all layers.
            device: of the pool.
            make_wrapper: FlashInfer's BatchDecodeWithPagedKVCacheWrapper, or what stands for it.
        """
        if make_wrapper is None:
            from flashinfer import BatchDecodeWithPagedKVCacheWrapper

            make_wrapper = BatchDecodeWithPagedKVCacheWrapper
        self._make_wrapper = make_wrapper
        self._head_counts = sorted({route.global_heads.numel() for route in routes} - {0})
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._wrappers: dict[tuple[int, int, int], tuple[Any, torch.Tensor]] = {}
        self._planned: dict[int, tuple[DecodePlan, Any, torch.Tensor]] = {}

    @staticmethod
    def serves(batch: Batch) -> bool:
        """Whether each request of the batch has exactly one query token."""
        return batch.max_query_len == 1 and batch.num_tokens == batch.seq_lens.numel()

    def plan(
        self,
        batch: Batch,
        seq_lens: torch.Tensor,
        layout: SegmentLayout,
        ratio: int,
        softmax_scale: float,
        soft_cap: float = 0.0,
    ) -> None:
        """Plan one engine step for all layers.

        Args:
            batch: a batch that `serves` accepts.
            seq_lens: int32 [R] on the CPU, the values of `batch.seq_lens`.
            layout: any layer's; page size, head size and dtype are read.
            ratio: query heads per KV head.
            softmax_scale: multiplies q.k.
            soft_cap: see `segpaged_attention`.
        """
        for count in self._head_counts:
            plan = plan_decode(seq_lens, count, layout.page_size, batch.block_tables.device)
            wrapper, indices = self._wrapper(count, batch.block_tables)
            wrapper.plan(
                plan.indptr,
                # Every layer overwrites these before it runs.
                indices[: plan.entry.numel()].zero_(),
                plan.last_page_len,
                ratio,
                1,
                layout.head_size,
                layout.page_size,
                q_data_type=layout.pool.dtype,
                kv_data_type=layout.pool.dtype,
                sm_scale=softmax_scale,
                logits_soft_cap=soft_cap,
            )
            self._planned[count] = plan, wrapper, indices

    def run(
        self,
        query: torch.Tensor,
        layout: SegmentLayout,
        route: HeadRoute,
        batch: Batch,
        output: torch.Tensor,
        softmax_scale: float,
        soft_cap: float = 0.0,
    ) -> None:
        """Attention of one layer, as `segpaged_attention`; `softmax_scale` and `soft_cap` as planned."""
        requests, kv_heads = batch.seq_lens.numel(), layout.num_kv_heads
        count = route.global_heads.numel()
        if count:
            plan, wrapper, indices = self._planned[count]
            indices[: plan.entry.numel()] = page_indices(plan, route, batch.block_tables)
            grouped = query[:requests].view(requests, kv_heads, -1, layout.head_size)
            rows = grouped.index_select(1, route.global_heads).flatten(0, 1)  # [R * N, g, D]
            result = wrapper.run(rows, (route.keys, route.values))
            target = output[:requests].view(requests, kv_heads, -1, layout.head_size)
            target.index_copy_(1, route.global_heads, result.view(requests, count, -1, layout.head_size))
        if route.local_heads.numel():
            from vllm_redknot.kernels.segpaged_attention.triton_decode import decode_launches

            for launch in decode_launches(
                query, layout, batch, output, softmax_scale, soft_cap, route.local_heads
            ):
                launch.run()

    def _wrapper(self, heads: int, block_tables: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The wrapper of a batch shape and the index buffer it reads; made on first use of the shape."""
        _, requests, pages = block_tables.shape
        key = (heads, requests, pages)
        if key not in self._wrappers:
            buffers = {
                name: torch.zeros(size, dtype=torch.int32, device=block_tables.device)
                for name, size in (
                    ("paged_kv_indptr_buffer", requests * heads + 1),
                    ("paged_kv_indices_buffer", requests * heads * pages),
                    ("paged_kv_last_page_len_buffer", requests * heads),
                )
            }
            # Only the CUDA-graph mode reads its page indices from a buffer that the caller may rewrite.
            wrapper = self._make_wrapper(
                self._workspace, "NHD", use_cuda_graph=True, use_tensor_cores=True, **buffers
            )
            self._wrappers[key] = wrapper, buffers["paged_kv_indices_buffer"]
        return self._wrappers[key]
