"""Which rows each layer computes in prefill, as a head profile's section "rows" and the setting `rows` state it.

Pure values: no vLLM, no torch. `docs/row_skipping.md` describes the keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from vllm_redknot.heads.profile import MAX_POSITIONS
from vllm_redknot.rows.sparse_ffn import Layer, Mass, Predictor, SparseFfn, Strict

SECTION: Final = "rows"
"""Name of the section in a head-profile file."""


class RowScheduleError(ValueError):
    """A schedule that cannot be used; the message names the key, the value and what would be valid."""


class RowSchedule(Strict):
    """What prompt tokens skip, but for a prompt's first `sink` and last `recent` tokens, which skip nothing.

    From layer `ffn_from` on no feed-forward network; from layer `attention_from` >= `ffn_from` on no attention,
    query or output projection; in the layers before `ffn_from`, the feed-forward network as `sparse_ffn` says.
    """

    ffn_from: Annotated[Layer | None, Field(description="first layer without a feed-forward network")] = None
    attention_from: Annotated[Layer | None, Field(description="first layer without attention")] = None
    sink: Annotated[
        int, Field(ge=0, le=MAX_POSITIONS, description="first tokens of a prompt that skip nothing")
    ] = 4
    recent: Annotated[
        int, Field(ge=1, le=MAX_POSITIONS, description="last tokens of a prompt that skip nothing")
    ] = 128
    sparse_ffn: Annotated[SparseFfn | None, Field(discriminator="rule")] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        first, attention = self.ffn_from, self.attention_from
        if first is None and attention is None and self.sparse_ffn is None:
            raise ValueError("nothing is skipped: give ffn_from, sparse_ffn, or both")
        if attention is not None and (first is None or attention < first):
            raise ValueError(
                f"attention_from is {attention} and ffn_from {first}: give ffn_from <= attention_from"
            )
        sparse = self._sparse_start()
        if first is not None and sparse is not None and sparse >= first:
            raise ValueError(
                f"sparse_ffn names layer {sparse}, and ffn_from is {first}: give layers below it"
            )
        return self

    def _sparse_start(self) -> int | None:
        """A layer of `sparse_ffn` that must lie before the late layers, if there is one."""
        sparse = self.sparse_ffn
        if sparse is None:
            return None
        return sparse.start if isinstance(sparse, Mass) else sparse.layers[-1]

    @classmethod
    def parse(cls, values: Mapping[str, JsonValue]) -> Self:
        """The schedule that a JSON object states.

        Raises:
            RowScheduleError: A key or value is wrong.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = "".join(f".{part}" for part in first["loc"])
            given = ascii(first["input"])
            given = given if len(given) <= 60 else given[:57] + "..."
            raise RowScheduleError(f"{SECTION}{place} is {given}: {first['msg']}") from error

    def check_model(self, num_layers: int, hidden_size: int | None) -> None:
        """Refuse layers the model has not, and predictors of another width; `hidden_size` None: not known.

        Raises:
            RowScheduleError: A layer number is not one of the model's, or a probe has not one weight for each value.
        """
        named = {"ffn_from": self.ffn_from, "attention_from": self.attention_from}
        sparse = self.sparse_ffn
        if isinstance(sparse, Mass):
            named |= {"sparse_ffn.start": sparse.start, "sparse_ffn.deep_start": sparse.deep_start}
        elif sparse is not None:
            field = "probes" if isinstance(sparse, Predictor) else "thresholds"
            named[f"sparse_ffn.{field}"] = sparse.layers[-1]
        for key, layer in named.items():
            if layer is not None and layer >= num_layers:
                raise RowScheduleError(
                    f"{SECTION}.{key} is {layer}: the model's layers are 0 to {num_layers - 1}"
                )
        if isinstance(sparse, Predictor) and hidden_size is not None:
            for place, probe in sparse.probes.items():
                width = len(probe.values())
                if width != hidden_size:
                    raise RowScheduleError(
                        f"{SECTION}.sparse_ffn.probes.{place} has {width} weights: the model's states have"
                        f" {hidden_size} values"
                    )

    def skips_ffn(self, layer: int) -> bool:
        """Whether skipping tokens run no feed-forward network at all in a layer."""
        return self.ffn_from is not None and layer >= self.ffn_from

    def skips_attention(self, layer: int) -> bool:
        """Whether skipping tokens run no attention in a layer."""
        return self.attention_from is not None and layer >= self.attention_from

    def skippable(self, prompt_tokens: int) -> tuple[int, int]:
        """Positions [start, stop) of a prompt whose tokens may skip work; empty for short prompts."""
        return self.sink, max(self.sink, prompt_tokens - self.recent)

    def to_section(self) -> dict[str, JsonValue]:
        """The JSON object it is stated by."""
        values: dict[str, JsonValue] = self.model_dump(mode="json", exclude_none=True)
        return values

    def digest(self) -> str:
        """16 hex digits, equal for two schedules iff they state the same."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def describe(self) -> str:
        """One line for the log."""
        parts = []
        if isinstance(self.sparse_ffn, Mass):
            parts.append(f"FFN rows by mass from layer {self.sparse_ffn.start}")
        elif self.sparse_ffn is not None:
            named = ", ".join(map(str, self.sparse_ffn.layers))
            parts.append(f"FFN rows by {self.sparse_ffn.rule} in layers {named}")
        if self.ffn_from is not None:
            parts.append(f"no FFN from layer {self.ffn_from}")
        if self.attention_from is not None:
            parts.append(f"no attention from layer {self.attention_from}")
        kept = f"but for the first {self.sink} and last {self.recent} tokens of a prompt"
        return f"row skipping in prefill: {', '.join(parts)}, {kept}"


def schedule_of(setting: str | Mapping[str, Any] | None, sections: Mapping[str, Any]) -> RowSchedule | None:
    """The schedule in force: the setting's, else the head file's, else none.

    Args:
        setting: the setting `rows`: "off", a schedule's keys, or None for the file's.
        sections: the head profile's sections.

    Raises:
        RowScheduleError: A key or value is wrong.
    """
    if setting == "off":
        return None
    stated = sections.get(SECTION) if setting is None else setting
    if stated is None:
        return None
    if not isinstance(stated, Mapping):
        raise RowScheduleError(f"{SECTION} is {ascii(stated)[:60]}: give an object")
    return RowSchedule.parse(stated)
