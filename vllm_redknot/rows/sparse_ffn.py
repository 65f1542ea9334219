"""The key `sparse_ffn` of a row schedule: by which rule layers before the late ones choose the rows their FFN computes.

Pure values: no vLLM, no torch. `rows/rules.py` applies them.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vllm_redknot.heads.profile import MAX_LAYERS

MAX_WIDTH: Final = 1 << 16
"""Values of a token's state."""

Layer = Annotated[int, Field(ge=0, lt=MAX_LAYERS)]
LayerText = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,3})$")]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Strict(BaseModel):
    """Takes what its fields say and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Probe(Strict):
    """One layer's predictor: what weighs each value of the FFN's input, and the least sum that is computed."""

    threshold: float
    weights: Annotated[
        str, Field(max_length=3 * MAX_WIDTH, description="fp16, little-endian, in base64: one per value")
    ]

    @classmethod
    def of(cls, weights: Sequence[float], threshold: float) -> Self:
        """Rounds the weights to fp16.

        Raises:
            OverflowError: One is too large for that.
        """
        packed = struct.pack(f"<{len(weights)}e", *weights)
        return cls(threshold=threshold, weights=base64.b64encode(packed).decode())

    @field_validator("weights")
    @classmethod
    def _check(cls, value: str) -> str:
        numbers = _numbers(value)
        if not 0 < len(numbers) <= MAX_WIDTH or not all(map(math.isfinite, numbers)):
            raise ValueError(f"{len(numbers)} weights: give 1 to {MAX_WIDTH}, all finite")
        return value

    def values(self) -> tuple[float, ...]:
        """The weights."""
        return _numbers(self.weights)


class Predictor(Strict):
    """Keep a row iff <weights, FFN input> >= threshold. Depends on the token's own state only."""

    rule: Literal["predictor"]
    probes: Annotated[
        dict[LayerText, Probe],
        Field(min_length=1, description="layer number (as text) -> probe; layers not named are dense"),
    ]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it applies to."""
        return tuple(sorted(map(int, self.probes)))


class RelativeNorm(Strict):
    """Keep a row iff |attention output| >= threshold * |residual|. Depends on the token's own state only."""

    rule: Literal["relative_norm"]
    thresholds: Annotated[
        dict[LayerText, Annotated[float, Field(ge=0.0)]],
        Field(min_length=1, description="layer number (as text) -> threshold; layers not named are dense"),
    ]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it applies to."""
        return tuple(sorted(map(int, self.thresholds)))


class Mass(Strict):
    """Keep the rows of largest attention output that hold a share of the chunk's total: the published rule.

    Which rows are kept depends on how the scheduler cut the prompt. For comparison only.
    """

    rule: Literal["mass"]
    start: Annotated[Layer, Field(description="first layer it applies to")]
    share: Annotated[Share, Field(description="kept share of the summed norms")]
    deep_start: Annotated[Layer | None, Field(description="first layer of `deep_share`")] = None
    deep_share: Share | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.deep_start is None) != (self.deep_share is None):
            raise ValueError("give deep_start and deep_share together")
        if self.deep_start is not None and self.deep_start < self.start:
            raise ValueError(f"deep_start is {self.deep_start}: give at least start, {self.start}")
        return self

    def share_of(self, layer: int) -> float | None:
        """The share kept in a layer, None where it does not apply."""
        if layer < self.start:
            return None
        deep = self.deep_start is not None and layer >= self.deep_start
        return self.deep_share if deep else self.share


SparseFfn = Predictor | RelativeNorm | Mass


def _numbers(text: str) -> tuple[float, ...]:
    try:
        packed = base64.b64decode(text, validate=True)
        return struct.unpack(f"<{len(packed) // 2}e", packed)
    except (binascii.Error, struct.error, ValueError) as error:
        raise ValueError("no base64 of fp16 values") from error
