"""What stands for FlashInfer's paged decode wrapper on a machine without a GPU: the same calls, in plain torch.

It follows FlashInfer's documentation of BatchDecodeWithPagedKVCacheWrapper: in the CUDA-graph mode plan() copies its
arrays into the caller's buffers, run() reads those; an entry of n pages has (n - 1) * page_size + last_page_len keys.
"""

from typing import Any

import torch


class PagedDecodeStandIn:
    """One batch shape's wrapper."""

    def __init__(
        self,
        workspace: torch.Tensor,
        kv_layout: str,
        *,
        use_cuda_graph: bool,
        use_tensor_cores: bool,
        paged_kv_indptr_buffer: torch.Tensor,
        paged_kv_indices_buffer: torch.Tensor,
        paged_kv_last_page_len_buffer: torch.Tensor,
    ) -> None:
        assert workspace.dtype == torch.uint8
        assert (kv_layout, use_cuda_graph, use_tensor_cores) == ("NHD", True, True)
        self.indptr, self.indices = paged_kv_indptr_buffer, paged_kv_indices_buffer
        self.last_page_len = paged_kv_last_page_len_buffer
        assert len(self.indptr) == len(self.last_page_len) + 1

    def plan(
        self,
        indptr: torch.Tensor,
        indices: torch.Tensor,
        last_page_len: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
        sm_scale: float,
        logits_soft_cap: float,
    ) -> None:
        assert all(array.dtype == torch.int32 for array in (indptr, indices, last_page_len))
        assert indptr.device.type == last_page_len.device.type == "cpu"
        assert q_data_type == kv_data_type
        assert len(last_page_len) == len(self.last_page_len), "the batch size is fixed"
        assert len(indices) == indptr[-1] <= len(self.indices)
        assert bool(((last_page_len >= 1) & (last_page_len <= page_size)).all())
        self.indptr.copy_(indptr)
        self.last_page_len.copy_(last_page_len)
        self.indices[: len(indices)].copy_(indices)
        self.shape = (num_qo_heads, num_kv_heads, head_dim, page_size)
        self.scale, self.soft_cap = sm_scale, logits_soft_cap

    def entry_rows(self, entry: int, cache: torch.Tensor) -> torch.Tensor:
        """Rows [keys, D] of K or V that entry `entry` reads."""
        pages = self.indices[self.indptr[entry] : self.indptr[entry + 1]].long()
        rows = cache[pages, :, 0].flatten(0, 1)
        return rows[: max(0, (len(pages) - 1) * cache.shape[1] + int(self.last_page_len[entry]))]

    def run(self, query: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor], **_: Any) -> torch.Tensor:
        keys, values = cache
        ratio, kv_heads, head_size, page_size = self.shape
        assert query.shape == (len(self.last_page_len), ratio, head_size)
        assert query.is_contiguous()
        assert keys.shape[1:] == values.shape[1:] == (page_size, kv_heads, head_size)
        assert keys.stride() == values.stride()
        output = torch.empty_like(query)
        for entry in range(len(query)):
            scores = query[entry].double() @ self.entry_rows(entry, keys).double().T * self.scale
            if self.soft_cap > 0:
                scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
            output[entry] = (scores.softmax(-1) @ self.entry_rows(entry, values).double()).to(query.dtype)
        return output
