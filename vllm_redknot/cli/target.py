"""Which head classes a command is about, and which model: the rules of a server, on a file or a model's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.model_file import ModelFile, read_model
from vllm_redknot.config import SECTION, RedknotConfig
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.profile import HeadProfile
from vllm_redknot.heads.resolve import BESIDE_MODEL, bundled_paths, resolve_heads


@dataclass(frozen=True)
class Target:
    """A profile, where it is from and why it is the one, and the model it is for, where that is known."""

    profile: HeadProfile
    origin: str
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    model: ModelFile | None = None


def settings(**given: Any) -> RedknotConfig:
    """Validated settings of what is not None, with what REDKNOT_* variables set. Raises RedknotConfigError."""
    return RedknotConfig.from_additional_config(
        {SECTION: {key: value for key, value in given.items() if value is not None}}
    )


def target_of_file(path: Path, config: RedknotConfig) -> Target:
    """The classes of one file, with the overrides of `config`. Raises HeadFileError, CliError."""
    profile = load_profile(path.expanduser(), config.duo_threshold)
    prefix = config.dense_prefix_layers
    if prefix is not None and prefix > profile.num_layers:
        raise CliError(
            f"dense_prefix_layers is {prefix}: {path} has {profile.num_layers} layers, give at most that"
        )
    changed = profile.with_overrides(config.window, config.sink, prefix)
    return Target(changed, f"{path} ({profile.source_format})", tuple(_overrides(config)), profile.warnings)


def target_of_model(folder: Path, config: RedknotConfig) -> Target:
    """What a server of the model in `folder` would use.

    Raises:
        CliError: config.json is missing or says nothing of use.
        HeadFileError, HeadFitError: The file that applies cannot be read, or does not fit the model.
        RedknotConfigError: An override that the model cannot have.
    """
    model = read_model(folder.expanduser())
    found = resolve_heads(config, model.shape)
    refused = tuple(
        f"REDKNOT does not serve {what}: a server would refuse this model" for what in model.refused
    )
    return Target(
        found.profile,
        found.origin,
        (*_reasons(model, config), *_overrides(config)),
        (*refused, *found.warnings),
        model,
    )


def _overrides(config: RedknotConfig) -> list[str]:
    """What the settings change of the file, whether an option or a REDKNOT_* variable says so."""
    changes = {key: getattr(config, key) for key in ("window", "sink", "dense_prefix_layers")}
    return [
        f"the setting {key!r} is {value}: it replaces the file's"
        for key, value in changes.items()
        if value is not None
    ]


def _reasons(model: ModelFile, config: RedknotConfig) -> list[str]:
    """The rules of `resolve_heads` in order, up to the one that applies."""
    if config.heads is not None:
        return [f'the setting "heads" is {config.heads}: it comes first']
    reasons = ['the setting "heads" is not given']
    beside = model.path / BESIDE_MODEL
    if beside.exists() or beside.is_symlink():
        return [*reasons, f"{BESIDE_MODEL} lies in the model's folder: it is used"]
    reasons.append(f"no {BESIDE_MODEL} in the model's folder")
    for path in bundled_paths():
        identity = load_profile(path).identity
        if identity is None:
            continue
        if model.shape.matches(identity):
            return [*reasons, f"bundled {path.name} states exactly this model's shape: it is used"]
        ours = model.shape.identity()
        differing = [
            key
            for key in type(identity).model_fields
            if key != "name" and getattr(identity, key) != getattr(ours, key)
        ]
        reasons.append(f"bundled {path.name} is for another model ({', '.join(differing)} differ)")
    return [*reasons, "so every head is global"]
