"""The block tables and slot mappings of all KV-cache groups, stacked once per engine step for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.utils.math_utils import cdiv

from vllm_redknot.kernels.segpaged_attention import Batch, plan_batch
from vllm_redknot.rows.plan import RowPlan

if TYPE_CHECKING:
    from vllm_redknot.rows.skipping import RowSkipping


@dataclass
class Step:
    """One engine step, as every layer sees it. Complete once every group has been added."""

    slot_mappings: torch.Tensor  # int64 [G, T]
    block_tables: torch.Tensor  # int32 [G, R, P]
    batch: Batch
    seq_lens_cpu: torch.Tensor  # int32 [R] on the CPU, exact without speculative decoding
    rows: RowPlan | None = None  # which rows skip work, where a prompt of the step has any


class StepTables:
    """Persistent buffers that groups' metadata builders fill one after the other, group 0 first.

    The buffers keep their addresses for the life of the engine, so a captured CUDA graph reads the current step.
    """

    def __init__(self, vllm_config: Any, rows: RowSkipping | None = None) -> None:
        scheduler, model = vllm_config.scheduler_config, vllm_config.model_config
        self._max_requests = scheduler.max_num_seqs
        self._max_pages = cdiv(model.max_model_len, vllm_config.cache_config.block_size)
        self._max_tokens = scheduler.max_num_batched_tokens
        self._rows = rows
        self._num_groups = 0
        self._tables = torch.empty(0, dtype=torch.int32)
        self._slots = torch.empty(0, dtype=torch.int64)
        self._step: Step | None = None

    def set_groups(self, num_groups: int) -> None:
        """Tell how many groups each step consists of; drops the buffers."""
        self._num_groups = num_groups
        self._tables = torch.empty(0, dtype=torch.int32)
        self._slots = torch.empty(0, dtype=torch.int64)
        self._step = None

    def add(self, group: int, common: Any, page_size: int) -> Step:
        """Enter one group's tables into the current step; group 0 begins a new one.

        Args:
            group: its number.
            common: vLLM's `CommonAttentionMetadata` of the group.
            page_size: tokens per page.
        """
        table, slots = common.block_table_tensor, common.slot_mapping
        if group == 0:
            self._step = self._begin(common, page_size)
        step = self._step
        assert step is not None, "vLLM builds the metadata of KV-cache group 0 first"
        step.block_tables[group].copy_(table[: common.num_reqs, : step.block_tables.shape[2]])
        step.slot_mappings[group].copy_(slots[: step.slot_mappings.shape[1]])
        return step

    def _begin(self, common: Any, page_size: int) -> Step:
        device = common.block_table_tensor.device
        requests, tokens = common.num_reqs, common.slot_mapping.shape[0]
        width = common.block_table_tensor.shape[1]
        # On a GPU the width is fixed, for graphs; on a CPU only pages in use are copied.
        pages = min(width, cdiv(common.max_seq_len, page_size)) if device.type == "cpu" else width
        self._reserve(device, requests, width, tokens)
        tables = self._tables[: self._num_groups * requests * pages].view(self._num_groups, requests, pages)
        slot_mappings = self._slots[: self._num_groups * tokens].view(self._num_groups, tokens)
        batch = plan_batch(
            tables,
            common.query_start_loc,
            common.seq_lens,
            common.num_actual_tokens,
            common.max_query_len,
            common.max_seq_len,
        )
        step = Step(slot_mappings, tables, batch, common.seq_lens_cpu_upper_bound)
        if self._rows is not None:
            step.rows = self._rows.plan(step, common)
        return step

    def _reserve(self, device: torch.device, requests: int, pages: int, tokens: int) -> None:
        table_size = self._num_groups * max(requests, self._max_requests) * max(pages, self._max_pages)
        if self._tables.numel() < table_size or self._tables.device != device:
            self._tables = torch.zeros(table_size, dtype=torch.int32, device=device)
        slot_size = self._num_groups * max(tokens, self._max_tokens)
        if self._slots.numel() < slot_size or self._slots.device != device:
            self._slots = torch.zeros(slot_size, dtype=torch.int64, device=device)
