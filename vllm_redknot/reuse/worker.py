"""The worker's side of reuse: answers lookups, writes leased spans into pages, and stores new documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.forward_context import set_forward_context
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index

from vllm_redknot.attention.model import SegmentedModel, find_model
from vllm_redknot.heads.profile import MAX_POSITIONS
from vllm_redknot.kernels.rope_relocate import Rotary
from vllm_redknot.reuse.blend_layers import EARLY, EarlyAttention, install_blend
from vllm_redknot.reuse.blend_step import BlendedRows, BlendStep, rows_at
from vllm_redknot.reuse.capture import DocumentReader
from vllm_redknot.reuse.faults import ReuseError
from vllm_redknot.reuse.identity import scope_of
from vllm_redknot.reuse.lookups import Lookups
from vllm_redknot.reuse.messages import Gather, Load, ReuseMetadata, ReuseReport
from vllm_redknot.reuse.metrics import Changes, ReuseStats
from vllm_redknot.reuse.pages import PagedModel
from vllm_redknot.reuse.policy import BLEND, Blend
from vllm_redknot.reuse.relocate import Relocator
from vllm_redknot.reuse.rotary import rotary_of, verify
from vllm_redknot.reuse.scope import Scope
from vllm_redknot.reuse.spans import Span
from vllm_redknot.reuse.store import SegmentStore
from vllm_redknot.reuse.text_tokens import text_tokenizer
from vllm_redknot.rows.structure import RowStructureError, decoder_layer

logger = init_logger("vllm.redknot")


class ReuseWorker:
    """One per worker process.

    Raises:
        ReuseError: The model's keys cannot be moved, or its weights not be told apart.
    """

    def __init__(
        self, vllm_config: Any, kv_cache_config: Any, open_store: Callable[[Scope], SegmentStore]
    ) -> None:
        model = find_model(vllm_config.compilation_config.static_forward_context)
        if model is None or model.parents is None:
            raise ReuseError("KV reuse found no head segments: is REDKNOT the attention backend?")
        self._model = model
        self._layers = sorted(model.layers, key=lambda layer: extract_layer_index(layer.names[0]))
        self._groups = _group_of(kv_cache_config)
        self._rotaries = _verified_rotaries(vllm_config, model, self._layers)
        self._scope = scope_of(
            vllm_config,
            model.profile,
            model.rows.schedule if model.rows is not None else None,
            [extract_layer_index(layer.names[0]) for layer in self._layers],
            [layer.visibilities for layer in self._layers],
            str(vllm_config.model_config.dtype).removeprefix("torch."),
            # A token that blend computes in the middle of a document sees its neighbours there.
            slack=MAX_POSITIONS if model.settings.policy == BLEND else 0,
        )
        self._early = _early(vllm_config, model, self._layers) if model.settings.policy == BLEND else None
        self.store = open_store(self._scope)
        tokenizer = text_tokenizer(vllm_config.model_config)
        self._lookups = Lookups(self.store, self._scope.format, model.settings.min_reuse, tokenizer)
        self._pages: PagedModel | None = None
        self._readers: dict[tuple[str, Span], DocumentReader] = {}
        self._report = ReuseReport()
        self._changes = Changes()
        logger.info("REDKNOT: stored KV of scope %s", self._scope.name)

    def begin(self, message: ReuseMetadata) -> None:
        """At the start of a step: start lookups, forget documents."""
        for lookup in message.lookups:
            self._lookups.ask(lookup)
        for document in message.drops:
            self._readers.pop(document, None)

    def load(self, message: ReuseMetadata, steps: Any) -> None:
        """Before the forward pass: write spans into pages, and tell the layers which of their rows are blended.

        Args:
            message: of the step.
            steps: what the layers are about to be given, by their names.
        """
        parts: list[BlendedRows] = []
        for load in message.loads:
            try:
                self._load(load)
                if load.blend is not None:
                    parts.append(self._blended_rows(load, load.blend, steps))
            except Exception:
                logger.exception(
                    "REDKNOT: stored KV could not be loaded; request %s starts over", load.request_id
                )
                self._report.broken.append(load.request_id)
        if parts:
            assert self._early is not None
            step = steps[self._layers[EARLY].names[0]]
            self._early.expect(BlendStep(step, parts, self._paged().layers[EARLY]))

    def end(self, message: ReuseMetadata) -> None:
        """After the forward pass: read documents, end leases."""
        for gather in message.gathers:
            try:
                self._gather(gather)
            except Exception as error:
                logger.warning(
                    "REDKNOT: a document of request %s is not stored: %s", gather.request_id, error
                )
                self._readers.pop((gather.request_id, gather.span), None)
                self._report.failed += 1
        for ticket in message.releases:
            self._lookups.release(ticket)

    def report(self) -> ReuseReport | None:
        """What has happened since the last call, if anything."""
        report, self._report = self._report, ReuseReport()
        report.found = self._lookups.answers()
        return report if report != ReuseReport() else None

    def stats(self) -> ReuseStats | None:
        """What the store has counted since the last call, if anything; sometimes only with a later step."""
        counters = self.store.counters_now()
        return None if counters is None else self._changes.since_last(counters.snapshot())

    def close(self) -> None:
        """End lookups and leases, and settle the store."""
        self._lookups.close()
        self.store.close()

    def _load(self, load: Load) -> None:
        segment = self._lookups.segment(load.ticket, load.span.content)
        Relocator(self._paged(), self._rotaries).load(segment, load.span, load.reader, load.blocks)

    def _blended_rows(self, load: Load, blend: Blend, steps: Any) -> BlendedRows:
        name = self._layers[EARLY].names[0]
        positions = torch.arange(load.span.begin, load.span.end)
        slots = self._paged().slots(positions, load.blocks[self._groups[name]])
        start = rows_at(slots, steps[name].slot_mappings[self._model.group_of(name)])
        return BlendedRows(start, start + len(positions), blend)

    def _gather(self, gather: Gather) -> None:
        key = gather.request_id, gather.span
        if gather.start == gather.span.begin:
            length = gather.span.end - gather.span.begin
            self._readers[key] = DocumentReader(self._paged(), self._rotaries, gather.span.begin, length)
        reader = self._readers.get(key)
        if reader is None:
            # An earlier part of it failed.
            return
        reader.read(gather.start, gather.stop, gather.blocks)
        if gather.tokens is None:
            return
        del self._readers[key]
        if self.store.put(reader.segment(gather.tokens)):
            self._report.stored += 1
        else:
            self._report.failed += 1

    def _paged(self) -> PagedModel:
        if self._pages is None:
            groups = [[self._groups[name] for name in layer.names] for layer in self._layers]
            self._pages = PagedModel(self._scope.format, [layer.bind() for layer in self._layers], groups)
        return self._pages


def _group_of(kv_cache_config: Any) -> dict[str, int]:
    """KV-cache layer name -> number of its group."""
    return {
        name: index
        for index, group in enumerate(kv_cache_config.kv_cache_groups)
        for name in group.layer_names
    }


def _early(vllm_config: Any, model: SegmentedModel, layers: Sequence[Any]) -> EarlyAttention:
    """Have the model's layers blend."""
    assert model.parents is not None
    context = vllm_config.compilation_config.static_forward_context
    found = []
    for name in (layer.names[0] for layer in layers):
        owner, layer = model.parents.of(name), model.parents.decoder_layer_of(name)
        try:
            found.append(decoder_layer(name, layer, owner, context[name]))
        except RowStructureError as error:
            raise ReuseError(f'{error}; give {{"redknot": {{"policy": "boundary"}}}}') from error
    return install_blend(found)


def _verified_rotaries(vllm_config: Any, model: SegmentedModel, layers: Sequence[Any]) -> list[Rotary]:
    """How each layer's keys turn, tried out on the layer itself."""
    assert model.parents is not None
    model.parents.stop()
    config = vllm_config.model_config
    context = vllm_config.compilation_config.static_forward_context
    last = config.max_model_len - 8
    positions = sorted({0, 1, min(37, last), last // 3, last})
    rotaries = []
    for layer in layers:
        name = layer.names[0]
        owner = model.parents.of(name)
        claimed = rotary_of(owner, name)
        size, dtype = config.get_hidden_size(), config.dtype
        # Layers that skip rows ask what step is running: none.
        with set_forward_context(None, vllm_config):
            rotaries.append(verify(owner, context[name], claimed, size, dtype, positions))
    return rotaries
