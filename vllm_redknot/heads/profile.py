"""What each KV head may see: the in-memory form every head-class file is read into."""

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from vllm_redknot.heads.errors import HeadProfileError

MAX_POSITIONS: Final = 2**30
"""The largest window or sink, in tokens: beyond any sequence, and safe in int32 position arithmetic."""
MAX_LAYERS: Final = 1024
MAX_HEADS: Final = 1024


class HeadClass(Enum):
    """The class of one (layer, KV head). Only `LOCAL` heads drop tokens; the others store and see all."""

    LOCAL = "local"
    GLOBAL = "global"
    DENSE = "dense"
    RETRIEVAL = "retrieval"


class HeadKind(Enum):
    """What a column of the matrices is."""

    KV = "KV head"
    MLA = "MLA logical head"


class HeadVisibility(NamedTuple):
    """Key j is visible to query i iff j <= i and (window is None or i - j < window or j < sink)."""

    window: int | None
    sink: int


EVERYTHING: Final = HeadVisibility(None, 0)


class ModelIdentity(BaseModel):
    """The model a profile was made for; None is unknown. A bundled profile states all but the name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: Annotated[str | None, Field(description="for people; never compared")] = None
    model_type: Annotated[str | None, Field(description="`model_type` of the model's config.json")] = None
    num_layers: Annotated[int | None, Field(ge=1, description="all layers, with or without attention")] = None
    num_attention_heads: Annotated[int | None, Field(ge=1)] = None
    num_kv_heads: Annotated[int | None, Field(ge=1)] = None
    head_dim: Annotated[int | None, Field(ge=1)] = None
    hidden_size: Annotated[int | None, Field(ge=1)] = None
    intermediate_size: Annotated[int | None, Field(ge=1)] = None
    vocab_size: Annotated[int | None, Field(ge=1)] = None
    rope_theta: Annotated[float | None, Field(gt=0)] = None


class Provenance(BaseModel):
    """How a profile was made."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    tool: Annotated[str | None, Field(description="the program that wrote the file")] = None
    method: Annotated[str | None, Field(description="how heads were told apart")] = None
    data: Annotated[str | None, Field(description="what the method looked at")] = None
    date: Annotated[str | None, Field(description="ISO date")] = None
    notes: Annotated[str | None, Field(description="known limits")] = None
    provisional: Annotated[bool, Field(description="true: it works, but expect a better one")] = False
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


@dataclass(frozen=True)
class HeadProfile:
    """Classes, windows and sinks. L rows = attention layers in order, H columns = KV heads over all ranks.

    `classes`, `window` and `sink` are [L][H]. `window` is in tokens, the query itself counted, and is None
    exactly where the class is not local. `layer_ids[row]` is the model layer a row stands for (strictly
    increasing). The first `dense_prefix_layers` *rows* are dense whatever the matrix says. `warnings` is what
    the reader of a file found odd, `sections` what it kept unread. Raises HeadProfileError if not so.
    """

    classes: tuple[tuple[HeadClass, ...], ...]
    window: tuple[tuple[int | None, ...], ...]
    sink: tuple[tuple[int, ...], ...]
    layer_ids: tuple[int, ...]
    dense_prefix_layers: int = 0
    kind: HeadKind = HeadKind.KV
    identity: ModelIdentity | None = None
    provenance: Provenance | None = None
    source_format: str = "memory"
    warnings: tuple[str, ...] = ()
    sections: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, heads = self.num_layers, self.num_kv_heads
        if not (1 <= rows <= MAX_LAYERS and 1 <= heads <= MAX_HEADS):
            raise HeadProfileError(
                f"a profile of {rows} layers x {heads} heads: both must be 1 to {MAX_LAYERS}"
            )
        for name, matrix in (("classes", self.classes), ("window", self.window), ("sink", self.sink)):
            if len(matrix) != rows or any(len(row) != heads for row in matrix):
                raise HeadProfileError(f"{name} is not a matrix of {rows} layers x {heads} heads")
        ids = self.layer_ids
        if len(ids) != rows or ids[0] < 0 or any(b <= a for a, b in itertools.pairwise(ids)):
            raise HeadProfileError(f"layer_ids {ids} must be {rows} increasing layer numbers")
        if not 0 <= self.dense_prefix_layers <= rows:
            raise HeadProfileError(f"dense_prefix_layers is {self.dense_prefix_layers}: give 0 to {rows}")
        for row in range(rows):
            for head in range(heads):
                self._check_head(row, head)

    def _check_head(self, row: int, head: int) -> None:
        window, sink = self.window[row][head], self.sink[row][head]
        local = self.classes[row][head] is HeadClass.LOCAL
        problem = None
        if local and (window is None or not 1 <= window <= MAX_POSITIONS):
            problem = f"a local head has window {window}: give 1 to {MAX_POSITIONS}"
        elif not local and window is not None:
            problem = f"a {self.classes[row][head].value} head has window {window}: give None"
        elif not 0 <= sink <= MAX_POSITIONS:
            problem = f"sink is {sink}: give 0 to {MAX_POSITIONS}"
        if problem is not None:
            raise HeadProfileError(f"layer {self.layer_ids[row]} head {head}: {problem}")

    @property
    def num_layers(self) -> int:
        """Rows: attention layers, which in a hybrid model are fewer than the model's layers."""
        return len(self.classes)

    @property
    def num_kv_heads(self) -> int:
        return len(self.classes[0]) if self.classes else 0

    @property
    def shape(self) -> str:
        return f"{self.num_layers} attention layers x {self.num_kv_heads} {self.kind.value}s"

    @cached_property
    def _row_of(self) -> dict[int, int]:
        return {layer_id: row for row, layer_id in enumerate(self.layer_ids)}

    def head_class(self, layer_id: int, kv_head: int) -> HeadClass:
        """The class that applies: dense in the dense prefix, else the matrix's. Raises HeadProfileError."""
        row = self._row_of.get(layer_id)
        if row is None or not 0 <= kv_head < self.num_kv_heads:
            raise HeadProfileError(
                f"no head {kv_head} of layer {layer_id} in a profile of {self.shape}, layers {self.layer_ids}"
            )
        return HeadClass.DENSE if row < self.dense_prefix_layers else self.classes[row][kv_head]

    def visibility(self, layer_id: int, kv_head: int) -> HeadVisibility:
        """What a head sees, by *model* layer and KV head over all ranks. Raises HeadProfileError."""
        if self.head_class(layer_id, kv_head) is not HeadClass.LOCAL:
            return EVERYTHING
        row = self._row_of[layer_id]
        return HeadVisibility(self.window[row][kv_head], self.sink[row][kv_head])

    @cached_property
    def seen(self) -> Counter[HeadVisibility]:
        """How many heads see the same."""
        return Counter(self.visibility(i, h) for i in self.layer_ids for h in range(self.num_kv_heads))

    def counts(self) -> Counter[HeadClass]:
        """Heads per class as they apply, counted from the matrix and the dense prefix."""
        return Counter(
            self.head_class(layer_id, h) for layer_id in self.layer_ids for h in range(self.num_kv_heads)
        )

    @property
    def is_all_global(self) -> bool:
        return self.counts()[HeadClass.LOCAL] == 0

    def with_overrides(
        self, window: int | None = None, sink: int | None = None, dense_prefix_layers: int | None = None
    ) -> "HeadProfile":
        """The profile with the window and sink of local heads, and the dense prefix, replaced where given."""
        prefix = self.dense_prefix_layers if dense_prefix_layers is None else dense_prefix_layers
        windows, sinks = self.window, self.sink
        if window is not None:
            windows = tuple(tuple(None if old is None else window for old in row) for row in windows)
        if sink is not None:
            sinks = tuple(
                tuple(sink if cls is HeadClass.LOCAL else old for cls, old in zip(classes, row, strict=True))
                for classes, row in zip(self.classes, sinks, strict=True)
            )
        return replace(self, window=windows, sink=sinks, dense_prefix_layers=prefix)

    def fingerprint(self) -> str:
        """16 hex digits over what every head sees: equal for two profiles iff they cache and attend alike."""
        seen = [(i, h, *self.visibility(i, h)) for i in self.layer_ids for h in range(self.num_kv_heads)]
        return hashlib.sha256(repr((self.kind.value, seen)).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """One line for the log: shape, heads per class, windows and sinks in use."""
        counts = self.counts()
        classes = ", ".join(f"{counts[cls]} {cls.value}" for cls in HeadClass if counts[cls])
        local = self.seen.keys() - {EVERYTHING}
        if not local:
            return f"{self.shape}: {classes}"
        windows = sorted({seen.window for seen in local if seen.window is not None})
        sinks = sorted({seen.sink for seen in local})
        return f"{self.shape}: {classes}; window {_span(windows)}, sink {_span(sinks)}"


def all_global(layer_ids: tuple[int, ...], num_kv_heads: int) -> HeadProfile:
    """The profile in which every head sees everything: the same results as the stock backend."""
    rows = len(layer_ids)
    return HeadProfile(
        classes=((HeadClass.GLOBAL,) * num_kv_heads,) * rows,
        window=((None,) * num_kv_heads,) * rows,
        sink=((0,) * num_kv_heads,) * rows,
        layer_ids=layer_ids,
        source_format="all-global",
    )


def _span(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
