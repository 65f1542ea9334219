"""Which head profile a server uses, and whether it fits the model."""

from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Final

from vllm_redknot.config import ALL_GLOBAL, RedknotConfig, RedknotConfigError
from vllm_redknot.heads.formats import load_profile
from vllm_redknot.heads.model_shape import ModelShape
from vllm_redknot.heads.profile import HeadProfile, all_global

BESIDE_MODEL: Final = "redknot_heads.json"
"""A head-class file of this name in the model's folder is used without being asked for."""


@dataclass(frozen=True)
class ResolvedHeads:
    """The profile in force, overrides applied, where it came from, and what to log as warnings."""

    profile: HeadProfile
    origin: str
    warnings: tuple[str, ...]


def resolve_heads(config: RedknotConfig, model: ModelShape) -> ResolvedHeads:
    """The profile for `model`: the configured one, else one beside it, else a bundled one, else all global.

    A profile covers the model's attention layers and KV heads over all ranks. Raises HeadFileError for a file
    that cannot be read, HeadFitError for one of another shape, RedknotConfigError for an impossible override.
    """
    found = _find(config, model)
    model.check_fit(found.profile)
    profile = _overridden(found.profile, config)
    return replace(
        found,
        profile=profile,
        warnings=(*found.profile.warnings, *found.warnings, *_idle_overrides(profile, config)),
    )


def _find(config: RedknotConfig, model: ModelShape) -> ResolvedHeads:
    if config.heads == ALL_GLOBAL:
        return ResolvedHeads(_all_global(model), f'heads="{ALL_GLOBAL}"', ())
    if config.heads is not None:
        return _from_file(Path(config.heads).expanduser(), "the setting `heads`", config, model)
    beside = None if model.model_dir is None else model.model_dir / BESIDE_MODEL
    # A dangling link is an error to report, not a file to overlook.
    if beside is not None and (beside.exists() or beside.is_symlink()):
        return _from_file(beside, "beside the model", config, model)
    return _bundled(model) or ResolvedHeads(
        _all_global(model),
        "no head classes found",
        (
            f"no head-class file was given and none is bundled for this model ({model.described}): every head"
            " is global, so nothing is saved. Give one with --additional-config"
            f' \'{{"redknot": {{"heads": "FILE"}}}}\' or put it into the model\'s folder as {BESIDE_MODEL};'
            f' to have all heads global without this warning, set "heads" to "{ALL_GLOBAL}".',
        ),
    )


def _from_file(path: Path, origin: str, config: RedknotConfig, model: ModelShape) -> ResolvedHeads:
    profile = load_profile(path, config.duo_threshold)
    stated = profile.identity.model_type if profile.identity else None
    warnings: tuple[str, ...] = ()
    if stated is not None and stated != model.model_type:
        warnings = (f"{path} was made for a {stated} model, this one is {model.model_type}",)
    return ResolvedHeads(profile, f"{path} ({origin}, {profile.source_format})", warnings)


def _bundled(model: ModelShape) -> ResolvedHeads | None:
    for path in bundled_paths():
        profile = load_profile(path)
        if profile.identity is not None and model.matches(profile.identity):
            return ResolvedHeads(profile, f"bundled {path.name}", ())
    return None


def bundled_paths() -> list[Path]:
    """The profiles that ship with the package."""
    folder = Path(str(files("vllm_redknot.heads"))) / "bundled"
    return sorted(folder.glob("*.json"))


def _all_global(model: ModelShape) -> HeadProfile:
    return all_global(model.attention_layers, model.num_kv_heads)


def _overridden(profile: HeadProfile, config: RedknotConfig) -> HeadProfile:
    prefix = config.dense_prefix_layers
    if prefix is not None and prefix > profile.num_layers:
        raise RedknotConfigError(
            f"redknot.dense_prefix_layers is {prefix}: give 0 to {profile.num_layers}, the attention layers"
        )
    return profile.with_overrides(config.window, config.sink, prefix)


def _idle_overrides(profile: HeadProfile, config: RedknotConfig) -> tuple[str, ...]:
    given = [f"{key}={value}" for key in ("window", "sink") if (value := getattr(config, key)) is not None]
    if not given or not profile.is_all_global:
        return ()
    return (f"{', '.join(given)} has no effect: no head is local",)
