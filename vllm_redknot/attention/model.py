"""What all head segments of one loaded model share: head classes, group numbers, and the tables of the current step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index

from vllm_redknot.attention.kernel_choice import choose_kernels
from vllm_redknot.attention.step import StepTables
from vllm_redknot.heads.profile import EVERYTHING, HeadVisibility
from vllm_redknot.heads.tensor_parallel import per_rank
from vllm_redknot.kernels.layout import SegmentLayout
from vllm_redknot.patches import ROW_PATCHES_OF_WORKERS, apply_missing
from vllm_redknot.reuse.rotary import LayerParents
from vllm_redknot.rows.metrics import RowMetricFile, metrics_folder
from vllm_redknot.rows.skipping import RowSkipping
from vllm_redknot.settings import settings_of
from vllm_redknot.support import UnsupportedError, resolve_model_heads, resolve_model_rows

logger = init_logger("vllm.redknot")


class SegmentedLayer(Protocol):
    """An attention layer whose heads are segments."""

    names: list[str]  # of the segments, by KV head
    visibilities: list[HeadVisibility]  # of the KV heads

    def bind(self) -> SegmentLayout:
        """Find out where vLLM has put the segments."""


class SegmentedModel:
    """One per loaded model and process. Attention layers, their companions and the metadata builders refer to it."""

    def __init__(self, vllm_config: Any) -> None:
        self.settings = settings_of(vllm_config)
        resolved = resolve_model_heads(vllm_config)
        for warning in resolved.warnings:
            logger.warning_once("REDKNOT: %s", warning)
        sharded = per_rank(resolved.profile, vllm_config.parallel_config.tensor_parallel_size)
        self.profile = sharded.profile
        schedule = resolve_model_rows(vllm_config)
        is_compiled = bool(vllm_config.compilation_config.mode)
        self.rows: RowSkipping | None = None
        if schedule is not None:
            # All tensor-parallel ranks skip the same rows.
            is_first = get_tensor_model_parallel_rank() == 0
            metrics = RowMetricFile(metrics_folder(vllm_config)) if is_first else None
            self.rows = RowSkipping(schedule, is_compiled, metrics)
            apply_missing(ROW_PATCHES_OF_WORKERS)
        self.tables = StepTables(vllm_config, self.rows)
        self.kernels = choose_kernels(self.settings, vllm_config.device_config.device_type)
        self.layers: list[SegmentedLayer] = []
        # Reuse must know how each layer turns its keys; their modules are only seen while the model is built.
        self.parents = LayerParents() if self.settings.reuse != "off" else None
        self._group_of: dict[str, int] = {}
        self._groups: list[tuple[str, ...]] = []
        logger.info_once("REDKNOT: %s (%s)", resolved.profile.describe(), resolved.origin)
        if sharded.promoted:
            logger.info_once("REDKNOT: %s", sharded.describe())

    def visibilities(
        self, layer_name: str, num_kv_heads: int, sliding_window: int | None
    ) -> list[HeadVisibility]:
        """What each KV head of a layer on this rank may see. A layer with its own sliding window keeps that."""
        if sliding_window is not None:
            return [HeadVisibility(sliding_window, 0)] * num_kv_heads
        if num_kv_heads != self.profile.num_kv_heads:
            logger.warning(
                "REDKNOT: %s has %d KV heads, the head classes have %d: all its heads are global",
                layer_name,
                num_kv_heads,
                self.profile.num_kv_heads,
            )
            return [EVERYTHING] * num_kv_heads
        layer = extract_layer_index(layer_name)
        return [self.profile.visibility(layer, head) for head in range(num_kv_heads)]

    def check_ready(self) -> None:
        """Refuse to serve a model whose layers do not do what the prefix cache takes for granted.

        Raises:
            UnsupportedError: The model's loader left row skipping out.
        """
        if self.rows is not None and not self.rows.installed:
            raise UnsupportedError(
                'REDKNOT: this --load-format does not serve row skipping: choose another, or give {"rows": "off"}'
            )

    def bind_layers(self) -> None:
        """Find out where vLLM has allocated the segments of all layers, and tell the kernels."""
        self.kernels.prepare([layer.bind() for layer in self.layers])

    def bind_group(self, names: Sequence[str]) -> int:
        """Number of the KV-cache group that holds these segments; groups are numbered in the order they are bound.

        vLLM binds all groups again when it allocates anew; a binding that contradicts an earlier one starts over.
        """
        members = tuple(names)
        if members in self._groups:
            return self._groups.index(members)
        if any(name in self._group_of for name in members):
            self._group_of.clear()
            self._groups.clear()
        self._groups.append(members)
        self._group_of.update(dict.fromkeys(members, len(self._groups) - 1))
        self.tables.set_groups(len(self._groups))
        return len(self._groups) - 1

    def group_of(self, name: str) -> int:
        """The group a segment was bound to."""
        return self._group_of[name]


def find_model(context: Mapping[str, Any]) -> SegmentedModel | None:
    """The state shared by the head segments of a forward context, if a layer of it has any."""
    for layer in context.values():
        model = getattr(layer, "model", None) or getattr(getattr(layer, "impl", None), "model", None)
        if isinstance(model, SegmentedModel):
            return model
    return None
