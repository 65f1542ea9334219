"""Random attention batches with every trap a kernel must survive; shared by the tests of all implementations.

A case has: pages scattered over one pool that groups share; prefixes shared between requests; NaN in every slot
that no query of the head may see; block-table entries without a visible key that are stale (a NaN page, another
request's live page, -1, or far outside the pool); queries that are slices of a wider tensor; padding rows.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vllm_redknot.kernels.layout import GLOBAL_WINDOW, SegmentLayout
from vllm_redknot.kernels.segpaged_attention.batch import Batch, plan_batch
from vllm_redknot.kernels.segpaged_attention.reference import segpaged_attention_reference

HEAD_SIZES = (64, 80, 96, 128, 192, 256)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Shape:
    """What a case looks like; everything else about it is drawn from the seed."""

    query_lens: Sequence[int]
    context_lens: Sequence[int]
    windows: Sequence[int]  # one per KV head
    sinks: Sequence[int]  # one per KV head
    head_groups: Sequence[int]  # one per KV head, 0 .. G-1
    ratio: int = 1
    head_size: int = 64
    page_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    soft_cap: float = 0.0
    padding_rows: int = 0
    query_gap: int = 0  # elements between the end of a query row and the next (a fused qkv slice)
    shared_prefix: bool = False  # requests share their first pages
    interleaved: bool = False  # segments interleave page by page instead of lying one after another
    scale: float = 1.0  # magnitude of q and k


@dataclass
class Case:
    """Arguments of one call and its oracle."""

    query: torch.Tensor
    layout: SegmentLayout
    batch: Batch
    softmax_scale: float
    soft_cap: float

    def poisoned_output(self) -> torch.Tensor:
        """[T', Hq, D] of NaN, for the kernel to write into."""
        return torch.full_like(self.query, float("nan"), memory_format=torch.contiguous_format)

    def expected(
        self, compute_dtype: torch.dtype = torch.float64, as_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The oracle's [T, Hq, D], rounded to `as_dtype` (query's dtype by default)."""
        query = self.query[: self.batch.num_tokens]
        return segpaged_attention_reference(
            query if as_dtype is None else query.to(as_dtype),
            self.layout,
            self.batch.block_tables,
            self.batch.cu_seqlens_q,
            self.batch.seq_lens,
            self.softmax_scale,
            self.soft_cap,
            compute_dtype,
        )


def build_case(shape: Shape, seed: int, device: str = "cpu") -> Case:
    """The case of `shape` drawn from `seed`; built on the CPU, then moved to `device`."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    requests, heads, groups = len(shape.query_lens), len(shape.windows), max(shape.head_groups) + 1
    lengths = [q + c for q, c in zip(shape.query_lens, shape.context_lens, strict=True)]
    slot_of_head = [list(shape.head_groups[:h]).count(shape.head_groups[h]) for h in range(heads)]
    pages_per_row = max(1, max(-(-length // shape.page_size) for length in lengths)) + rng.randint(0, 2)
    needed = groups * sum(-(-length // shape.page_size) for length in lengths)
    num_pages = needed + 4
    pages = rng.sample(range(num_pages), num_pages)
    poisoned_page = pages.pop()

    slots = max(slot_of_head) + 1
    page_elements = shape.page_size * 2 * shape.head_size
    page_stride = page_elements * slots if shape.interleaved else page_elements
    segment_stride = page_elements if shape.interleaved else page_elements * num_pages
    margin = rng.randint(0, 3) * 32
    base = torch.tensor([margin + slot * segment_stride for slot in slot_of_head], dtype=torch.int64)
    pool = torch.full((margin + slots * num_pages * page_elements,), float("nan"), dtype=shape.dtype)

    tables = torch.empty((groups, requests, pages_per_row), dtype=torch.int32)
    shared_owner: dict[tuple[int, int], int] = {}
    prefix_pages = min(lengths) // shape.page_size if shape.shared_prefix else 0
    seen = [_visible_slots(shape, h, lengths) for h in range(heads)]
    for group in range(groups):
        members = [h for h in range(heads) if shape.head_groups[h] == group]
        for request in range(requests):
            for entry in range(pages_per_row):
                start = entry * shape.page_size
                live = any(bool(seen[h][request][start : start + shape.page_size].any()) for h in members)
                if live and entry < prefix_pages:
                    key = (group, entry)
                    shared_owner.setdefault(key, pages[-1])
                    if shared_owner[key] == pages[-1]:
                        pages.pop()
                    page = shared_owner[key]
                elif live:
                    page = pages.pop()
                else:
                    page = rng.choice([poisoned_page, rng.randrange(num_pages), -1, 2**31 - 1, num_pages + 7])
                tables[group, request, entry] = page

    layout = SegmentLayout(
        pool=pool,
        base=base,
        group=torch.tensor(shape.head_groups, dtype=torch.int32),
        window=torch.tensor(shape.windows, dtype=torch.int32),
        sink=torch.tensor(shape.sinks, dtype=torch.int32),
        page_stride=page_stride,
        token_stride=2 * shape.head_size,
        value_offset=shape.head_size,
        page_size=shape.page_size,
        head_size=shape.head_size,
    )
    lane = torch.arange(shape.head_size)
    for head in range(heads):
        for request in range(requests):
            position = seen[head][request].nonzero()[:, 0]
            page = tables[shape.head_groups[head], request][position // shape.page_size].long()
            row = base[head] + page * page_stride + position % shape.page_size * layout.token_stride
            noise = torch.randn((2, position.numel(), shape.head_size), generator=generator)
            pool[row[:, None] + lane] = (noise[0] * shape.scale).to(shape.dtype)
            pool[row[:, None] + lane + layout.value_offset] = noise[1].to(shape.dtype)

    tokens, query_heads = sum(shape.query_lens), heads * shape.ratio
    wide = torch.full(
        (tokens + shape.padding_rows, query_heads * shape.head_size + shape.query_gap),
        float("nan"),
        dtype=shape.dtype,
    )
    width = query_heads * shape.head_size
    wide[:tokens, :width] = (torch.randn((tokens, width), generator=generator) * shape.scale).to(shape.dtype)
    wide = wide.to(device)
    query = wide[:, :width].unflatten(1, (query_heads, shape.head_size))
    starts = torch.tensor([0, *shape.query_lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    batch = plan_batch(
        tables.to(device),
        starts.to(device),
        torch.tensor(lengths, dtype=torch.int32, device=device),
        tokens,
        max(shape.query_lens),
        max(lengths),
    )
    layout = SegmentLayout(
        **{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in vars(layout).items()}
    )
    return Case(query, layout, batch, shape.head_size**-0.5, shape.soft_cap)


def _visible_slots(shape: Shape, head: int, lengths: Sequence[int]) -> list[torch.Tensor]:
    """bool [length] per request: positions that some query of the request sees in `head`."""
    masks = []
    for query_len, length in zip(shape.query_lens, lengths, strict=True):
        position = torch.arange(length)
        first = length - query_len
        mask = (position < shape.sinks[head]) | (position > first - shape.windows[head])
        masks.append(mask if query_len else torch.zeros(length, dtype=torch.bool))
    return masks


def random_shape(
    seed: int,
    head_size: int | None = None,
    dtype: torch.dtype | None = None,
    max_requests: int = 8,
    max_query: int = 150,
    max_context: int = 700,
) -> Shape:
    """A shape drawn from `seed`: mixed prefill, decode and empty requests, head classes, GQA, odd lengths."""
    rng = random.Random(seed)
    heads, ratio = rng.choice([(1, 1), (3, 3), (2, 4), (1, 8), (4, 1), (1, 3), (2, 1)])
    requests = rng.randint(1, max_requests)
    query_lens = [
        rng.choice([0, 1, 1, 1, rng.randint(2, 9), rng.randint(1, max_query)]) for _ in range(requests)
    ]
    if not any(query_lens):
        query_lens[rng.randrange(requests)] = rng.randint(1, max_query)
    context_lens = [rng.choice([0, rng.randint(0, 40), rng.randint(0, max_context)]) for _ in query_lens]
    context_lens = [c if q else max(c, 1) for q, c in zip(query_lens, context_lens, strict=True)]
    windows, sinks = [], []
    for _ in range(heads):
        if rng.random() < 0.35:
            windows.append(GLOBAL_WINDOW)
            sinks.append(0)
        else:
            windows.append(
                rng.choice([1, 2, rng.randint(3, 40), rng.randint(16, 300), max_context + max_query + 50])
            )
            sinks.append(rng.choice([0, 1, 4, rng.randint(0, 128), 128]))
    groups = rng.randint(1, heads)
    head_groups = [rng.randrange(groups) for _ in range(heads)]
    head_groups = [sorted(set(head_groups)).index(group) for group in head_groups]
    return Shape(
        query_lens=query_lens,
        context_lens=context_lens,
        windows=windows,
        sinks=sinks,
        head_groups=head_groups,
        ratio=ratio,
        head_size=head_size or rng.choice(HEAD_SIZES),
        page_size=rng.choice([16, 32, 48, 64, 128]),
        dtype=dtype or rng.choice(DTYPES),
        soft_cap=rng.choice([0.0, 0.0, 0.0, 15.0]),
        padding_rows=rng.choice([0, 0, 5]),
        query_gap=rng.choice([0, 64, 160]),
        shared_prefix=rng.random() < 0.3,
        interleaved=rng.random() < 0.5,
        scale=rng.choice([0.5, 1.0, 1.0, 3.0]),
    )
