"""The plugin's settings: `--additional-config '{"redknot": {...}}'`, single keys overridden by REDKNOT_<KEY>.

Every setting is one field of `RedknotConfig`; its description is the valid choice an error quotes. This is
the only module that reads the process environment.
"""

import difflib
import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from vllm_redknot.heads.profile import MAX_POSITIONS
from vllm_redknot.rows.schedule import RowSchedule

logger = logging.getLogger(__name__)

SECTION: Final = "redknot"
ENV_PREFIX: Final = "REDKNOT_"
ALL_GLOBAL: Final = "all-global"
DEFAULT_BOUNDARY: Final = 64
"""The smallest of 0, 4, 16, 32 and 64 with which SmolLM2 answers questions as well as dense (docs/reuse.md)."""


class RedknotConfigError(ValueError):
    """A setting that cannot be used: the message names the key, the value and the valid choice."""


def _checked_rows(stated: dict[str, JsonValue] | str) -> dict[str, JsonValue] | str:
    if not isinstance(stated, str):
        RowSchedule.parse(stated)
    return stated


class RedknotConfig(BaseModel):
    """All settings, validated. Build it with `from_additional_config`; a key left out has its default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    heads: Annotated[
        str | None,
        Field(
            min_length=1,
            description='the path of a head-class file, "all-global", or null to look beside the model and'
            " among the bundled profiles",
        ),
    ] = None
    window: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_POSITIONS,
            description="an integer >= 1 (tokens), or null for the head file's windows",
        ),
    ] = None
    sink: Annotated[
        int | None,
        Field(
            ge=0, le=MAX_POSITIONS, description="an integer >= 0 (tokens), or null for the head file's sinks"
        ),
    ] = None
    dense_prefix_layers: Annotated[
        int | None,
        Field(ge=0, description="an integer >= 0 (attention layers), or null for the head file's number"),
    ] = None
    max_groups: Annotated[int, Field(ge=1, description="an integer >= 1 (KV-cache groups)")] = 16
    duo_threshold: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="a number from 0 to 1 (DuoAttention heads above it are global)"),
    ] = 0.5
    kernel: Annotated[Literal["auto", "torch"], Field(description='"auto" or "torch"')] = "auto"
    decode_kernel: Annotated[
        Literal["triton", "flashinfer"], Field(description='"triton" or "flashinfer" (decode on GPUs)')
    ] = "triton"
    reuse: Annotated[
        Literal["off", "on", "force"],
        Field(
            description='"off", "on" (needs the receipt of `redknot verify-reuse`) or "force" (needs none)'
        ),
    ] = "off"
    receipt: Annotated[
        str | None,
        Field(
            min_length=1,
            description="the path of a receipt, or null to look beside the model and in the cache",
        ),
    ] = None
    store: Annotated[
        str | None,
        Field(min_length=1, description="the path of a folder for documents' KV, or null"),
    ] = None
    store_memory_gib: Annotated[
        float, Field(ge=0.0, description="a number >= 0 (GiB of host memory for documents' KV)")
    ] = 4.0
    store_disk_gib: Annotated[
        float, Field(ge=0.0, description="a number >= 0 (GiB of disk for documents' KV)")
    ] = 20.0
    boundary: Annotated[
        int,
        Field(ge=0, le=MAX_POSITIONS, description="an integer >= 0 (tokens recomputed per moved document)"),
    ] = DEFAULT_BOUNDARY
    policy: Annotated[
        Literal["boundary", "blend"],
        Field(description='"boundary" or "blend" (which tokens of moved documents are recomputed)'),
    ] = "boundary"
    share: Annotated[
        float,
        Field(ge=0.0, le=1.0, description="a number from 0 to 1 (of a moved document, recomputed by blend)"),
    ] = 0.15
    capture: Annotated[
        Literal["off", "first", "marked"],
        Field(
            description='"off", "first" (store marked documents that begin a prompt) or "marked" (store all marked'
            " documents)"
        ),
    ] = "first"
    min_reuse: Annotated[
        int, Field(ge=31, description="an integer >= 31 (tokens of the shortest run that is reused)")
    ] = 64
    rows: Annotated[
        Annotated[dict[str, JsonValue] | Literal["off"], AfterValidator(_checked_rows)] | None,
        Field(
            description='"off", a schedule such as {"ffn_from": 20, "attention_from": 24}, or null for the head'
            " file's"
        ),
    ] = None
    cache_dir: Annotated[
        str,
        Field(
            default_factory=lambda: default_cache_dir(os.environ),
            min_length=1,
            description="the path of a folder for compiled kernels",
        ),
    ]

    @classmethod
    def from_additional_config(
        cls, additional_config: Mapping[str, Any] | None, environ: Mapping[str, str] = os.environ
    ) -> Self:
        """Settings of vLLM's `additional_config`, overridden by the environment.

        An empty variable counts as unset. A REDKNOT_* variable that names no setting is only warned about,
        once per process: the environment also belongs to others. Raises RedknotConfigError.
        """
        settings = _section(additional_config)
        _validated(cls, settings)
        values = {"cache_dir": default_cache_dir(environ), **settings, **_environment(cls, environ)}
        return cls.model_validate(values)

    @property
    def cache_path(self) -> Path:
        return Path(self.cache_dir).expanduser()


def default_cache_dir(environ: Mapping[str, str]) -> str:
    """$XDG_CACHE_HOME/vllm-redknot, or ~/.cache/vllm-redknot. Its standard has a relative path ignored."""
    root = environ.get("XDG_CACHE_HOME", "")
    return str((Path(root) if Path(root).is_absolute() else Path("~/.cache")) / "vllm-redknot")


def prometheus_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """prometheus_client's folder for the metrics of several processes, where vLLM or its user has set one."""
    folder = environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def _section(additional_config: Mapping[str, Any] | None) -> dict[str, Any]:
    # vLLM also allows an object of another platform here: it cannot hold our section.
    if not isinstance(additional_config, Mapping):
        return {}
    section = additional_config.get(SECTION)
    if section is None:
        return {}
    if not isinstance(section, Mapping):
        raise RedknotConfigError(
            f"additional_config[{SECTION!r}] is {_shown(section)}: give an object of settings, such as"
            ' {"redknot": {"window": 1024}}'
        )
    return dict(section)


def _environment(model: type[RedknotConfig], environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in sorted(environ):
        text = environ[name]
        if not name.startswith(ENV_PREFIX) or not text:
            continue
        key = name.removeprefix(ENV_PREFIX).lower()
        if name != f"{ENV_PREFIX}{key.upper()}" or key not in model.model_fields:
            _warn_unknown_variable(name, tuple(model.model_fields))
            continue
        try:
            parsed = model.model_validate_strings({key: text})
        except ValidationError as error:
            raise RedknotConfigError(f"{name}={text!r}: give {_choice(model, key)}") from error
        values[key] = getattr(parsed, key)
    return values


@lru_cache
def _warn_unknown_variable(name: str, keys: tuple[str, ...]) -> None:
    variables = [f"{ENV_PREFIX}{key.upper()}" for key in keys]
    logger.warning("%s is set but is no setting of vllm-redknot: %s", name, _nearest(name, variables))


def _validated(model: type[RedknotConfig], settings: Mapping[str, Any]) -> None:
    try:
        model.model_validate(settings)
    except ValidationError as error:
        raise RedknotConfigError("; ".join(_problems(model, settings, error))) from error


def _problems(model: type[RedknotConfig], settings: Mapping[str, Any], error: ValidationError) -> list[str]:
    lines: list[str] = []
    for key in dict.fromkeys(detail["loc"][0] for detail in error.errors()):
        if key in model.model_fields:
            lines.append(
                f"{SECTION}.{key} is {_shown(settings.get(str(key)))}: give {_choice(model, str(key))}"
                f"{_why(error, key)}"
            )
        else:
            lines.append(f"{SECTION}.{key} is no setting: {_nearest(str(key), list(model.model_fields))}")
    return lines


def _why(error: ValidationError, key: str | int) -> str:
    # What a check of our own found inside of a value; pydantic's own messages say less than the choice.
    found = [d["msg"] for d in error.errors() if d["loc"][0] == key and d["type"] == "value_error"]
    return f" ({found[0].removeprefix('Value error, ')})" if found else ""


def _choice(model: type[RedknotConfig], key: str) -> str:
    return str(model.model_fields[key].description)


def _nearest(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"the settings are {', '.join(valid)}"


def _shown(value: object) -> str:
    text = ascii(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"
