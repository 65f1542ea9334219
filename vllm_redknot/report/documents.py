"""The documents a report is made of, as far as it reads them: bounded in size, finite in every number.

Keys that are not named here are ignored, so that the writers may say more than the report shows.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from vllm_redknot.heads.profile import MAX_HEADS, MAX_LAYERS

MAX_ROWS: Final = 5000
MAX_PARTS: Final = 8
"""Configurations of an ablation, and kinds of rows."""
Name = Annotated[str, Field(max_length=300)]
Text = Annotated[str, Field(max_length=4000)]


def _name_of(model: object) -> object:
    """A model is stated by its name, or by an object that has one."""
    return model.get("name") if isinstance(model, dict) else model


def _file_name(origin: str) -> str:
    """Where a file lies is of no use to who reads the page elsewhere."""
    return origin.rpartition("/")[2]


ModelName = Annotated[Name, BeforeValidator(_name_of)]
Share = Annotated[float, Field(ge=0, le=2)]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class HeadsStated(_Read):
    """Which head classes a document is about. `kv_share`: of stock's KV bytes, at the longest request."""

    origin: Annotated[Text, AfterValidator(_file_name)] | None = None
    description: Text | None = None
    fingerprint: Name | None = None
    kv_share: Share | None = None


class Samples(_Read):
    """One side of a benchmark's row."""

    median: float
    samples: Annotated[list[float], Field(max_length=MAX_ROWS)] = []


class AblatedSamples(Samples):
    """One configuration of an ablation; `ratio` is its median over stock's."""

    ratio: float


class BenchRow(_Read):
    """One figure of all sides; `ratio` is REDKNOT's median over stock's."""

    workload: Name
    metric: Name
    unit: Name
    stock: Samples
    redknot: Samples
    ratio: float
    better: Literal["higher", "lower"]
    ablation: Annotated[dict[Name, AblatedSamples], Field(max_length=MAX_PARTS)] | None = None


class Part(_Read):
    """A configuration of an ablation. `rows_skipped`: shares of prefill rows, by kind."""

    description: Text | None = None
    kv_share: Share | None = None
    row_schedule: dict[str, Any] | None = None
    rows_skipped: Annotated[dict[Name, Share], Field(max_length=MAX_PARTS)] | None = None


class BenchDocument(_Read):
    """What `redknot bench` writes."""

    kind: Literal["redknot.bench"]
    format: Literal[1]
    model: ModelName
    heads: HeadsStated = HeadsStated()
    row_schedule: dict[str, Any] | None = None
    rows_skipped: Annotated[dict[Name, Share], Field(max_length=MAX_PARTS)] | None = None
    ablation: Annotated[dict[Name, Part], Field(max_length=MAX_PARTS)] | None = None
    machine: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    rows: Annotated[list[BenchRow], Field(max_length=200)]


class Estimate(_Read):
    """A value with its confidence interval."""

    value: float
    low: float | None = None
    high: float | None = None


class Cell(_Read):
    """One measured quality. `depth` is where a needle stood, 0 to 1; None for a whole length."""

    task: Name
    metric: Name
    length: Annotated[int, Field(ge=0)] | None = None
    depth: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=0)]
    stock: Estimate | None = None
    redknot: Estimate | None = None
    difference: Estimate | None = None
    within_noise: bool | None = None


class Choices(_Read):
    """`beyond_window`: by length, whether needles lie farther back than any local window."""

    beyond_window: Annotated[dict[Name, bool], Field(max_length=64)] = {}


Suites = Annotated[
    dict[Name, Annotated[list[Cell], Field(max_length=MAX_ROWS)]],
    Field(max_length=16),
]


class EvalPart(Part):
    """A configuration of an ablation, beside stock."""

    suites: Suites


class EvalDocument(_Read):
    """What `redknot eval` writes."""

    kind: Literal["redknot.eval"]
    format: Literal[1]
    model: ModelName
    heads: HeadsStated = HeadsStated()
    versions: dict[str, Any] = {}
    seed: int | None = None
    choices: Choices = Choices()
    notes: dict[str, Any] = {}
    row_schedule: dict[str, Any] | None = None
    suites: Suites
    ablation: Annotated[dict[Name, EvalPart], Field(max_length=MAX_PARTS)] | None = None


class CurvePoint(_Read):
    """Quality of one assignment of head classes. `window` is None where no head is local, or windows are mixed."""

    assignment: Name
    global_share: Annotated[float, Field(ge=0, le=1)] | None = None
    window: Annotated[int, Field(ge=0)] | None = None
    kv_share: Share
    seed: int | None = None
    metrics: Annotated[dict[Name, float | None], Field(max_length=16)]


class Chosen(_Read):
    """The assignment that became the profile."""

    kv_share: Share | None = None
    context: int | None = None
    description: Text | None = None


Row = Annotated[list[float | None], Field(min_length=1, max_length=MAX_HEADS)]


class ProfileDocument(_Read):
    """What `redknot profile` records: `scores` are [layers][KV heads]."""

    kind: Literal["redknot.profile"]
    format: Literal[1]
    model: ModelName
    shape: Annotated[list[Annotated[int, Field(ge=1, le=MAX_LAYERS)]], Field(min_length=2, max_length=2)]
    scores: Annotated[
        dict[Name, Annotated[list[Row], Field(min_length=1, max_length=MAX_LAYERS)]], Field(max_length=32)
    ] = {}
    curve: Annotated[list[CurvePoint], Field(max_length=MAX_ROWS)] = []
    chosen: Chosen | None = None
    verification: dict[str, Any] = {}

    @model_validator(mode="after")
    def _scores_have_the_shape(self) -> Self:
        layers, heads = self.shape
        for name, matrix in self.scores.items():
            if len(matrix) != layers or any(len(row) != heads for row in matrix):
                raise ValueError(f"scores {name[:60]!r} is not a matrix of {layers} layers x {heads} heads")
        return self
