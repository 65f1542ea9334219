"""Which kernels serve a model: the fused ones, plain torch, or FlashInfer for the decode of global heads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from vllm.logger import init_logger

from vllm_redknot.attention.step import Step
from vllm_redknot.config import RedknotConfig
from vllm_redknot.kernels import native
from vllm_redknot.kernels.kv_write import kv_write
from vllm_redknot.kernels.kv_write.torch_path import kv_write_torch
from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.kernels.segpaged_attention import segpaged_attention
from vllm_redknot.kernels.segpaged_attention.flashinfer import FlashInferDecode, HeadRoute, route_heads
from vllm_redknot.kernels.segpaged_attention.torch_path import segpaged_attention_torch

logger = init_logger("vllm.redknot")


class Kernels(Protocol):
    """What a layer calls."""

    def prepare(self, layouts: Iterable[SegmentLayout]) -> None:
        """Told once, before the first step, where the segments of all layers lie."""

    def write(self, key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, step: Step) -> None:
        """Store K and V of the step's tokens."""

    def attend(
        self,
        query: torch.Tensor,
        layout: SegmentLayout,
        step: Step,
        output: torch.Tensor,
        softmax_scale: float,
        soft_cap: float,
    ) -> None:
        """Attention of one layer, into `output`."""


class FusedKernels:
    """C++ on a CPU, Triton on a GPU."""

    def prepare(self, layouts: Iterable[SegmentLayout]) -> None:
        """Check what the GPU kernels take for granted."""
        for layout in layouts:
            if layout.pool.device.type == "cuda":
                from vllm_redknot.kernels.segpaged_attention.triton import check_layout_alignment

                check_layout_alignment(layout)

    def write(self, key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, step: Step) -> None:
        """See `Kernels`."""
        kv_write(key, value, layout, step.slot_mappings)

    def attend(
        self,
        query: torch.Tensor,
        layout: SegmentLayout,
        step: Step,
        output: torch.Tensor,
        softmax_scale: float,
        soft_cap: float,
    ) -> None:
        """See `Kernels`."""
        segpaged_attention(query, layout, step.batch, output, softmax_scale, soft_cap)


class TorchKernels(FusedKernels):
    """Plain torch on any device: slow, for comparison and for machines without a compiler."""

    def prepare(self, layouts: Iterable[SegmentLayout]) -> None:
        """Nothing to check."""

    def write(self, key: torch.Tensor, value: torch.Tensor, layout: SegmentLayout, step: Step) -> None:
        """See `Kernels`."""
        kv_write_torch(key, value, layout, step.slot_mappings)

    def attend(
        self,
        query: torch.Tensor,
        layout: SegmentLayout,
        step: Step,
        output: torch.Tensor,
        softmax_scale: float,
        soft_cap: float,
    ) -> None:
        """See `Kernels`."""
        segpaged_attention_torch(query, layout, step.batch, output, softmax_scale, soft_cap)


class FlashInferKernels(FusedKernels):
    """FlashInfer decodes global heads; everything else is fused. Not yet run on a GPU."""

    def __init__(self) -> None:
        self._routes: dict[int, HeadRoute] = {}
        self._decode: FlashInferDecode | None = None
        self._planned: Step | None = None

    def prepare(self, layouts: Iterable[SegmentLayout]) -> None:
        """Number the pages of all layers."""
        layouts = list(layouts)
        super().prepare(layouts)
        self._routes = {id(layout): route_heads(layout) for layout in layouts}
        self._decode = FlashInferDecode(self._routes.values(), layouts[0].pool.device)

    def attend(
        self,
        query: torch.Tensor,
        layout: SegmentLayout,
        step: Step,
        output: torch.Tensor,
        softmax_scale: float,
        soft_cap: float,
    ) -> None:
        """See `Kernels`; layers of one model share softmax scale and soft cap."""
        decode = self._decode
        assert decode is not None, "prepare comes first"
        if not decode.serves(step.batch):
            super().attend(query, layout, step, output, softmax_scale, soft_cap)
            return
        if self._planned is not step:
            ratio = query.shape[1] // layout.num_kv_heads
            decode.plan(step.batch, step.seq_lens_cpu, layout, ratio, softmax_scale, soft_cap)
            self._planned = step
        decode.run(query, layout, self._routes[id(layout)], step.batch, output, softmax_scale, soft_cap)


def choose_kernels(settings: RedknotConfig, device_type: str) -> Kernels:
    """The kernels that the settings ask for on this kind of device."""
    if settings.kernel == "torch":
        return TorchKernels()
    if settings.decode_kernel == "flashinfer":
        if device_type == "cuda":
            return FlashInferKernels()
        logger.warning_once(
            'REDKNOT: "decode_kernel": "flashinfer" is for GPUs; the %s kernels decode', device_type
        )
    if device_type == "cpu":
        # Builds now, not in the middle of the first request.
        native.load(settings.cache_path / "kernels")
    return FusedKernels()
