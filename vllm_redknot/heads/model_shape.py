"""The part of a model's shape that head classes depend on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_redknot.heads.errors import HeadFitError
from vllm_redknot.heads.profile import HeadKind, HeadProfile, ModelIdentity


@dataclass(frozen=True)
class ModelShape:
    """What the server knows of its model. Head counts are over all tensor-parallel ranks.

    `num_layers` counts all layers; `attention_layer_ids` are those whose heads have classes (None: all of
    them). `model_dir` is the model's folder where it is a local one.
    """

    num_layers: int
    num_kv_heads: int
    num_attention_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    model_type: str
    model_dir: Path | None = None
    attention_layer_ids: tuple[int, ...] | None = None
    intermediate_size: int | None = None
    rope_theta: float | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], model_dir: Path | None = None) -> "ModelShape":
        """From a Hugging Face config as a dict (`PretrainedConfig.to_dict()` or config.json), GQA models.

        Raises KeyError for a missing count.
        """
        config = config.get("text_config") or config
        heads = config["num_attention_heads"]
        return cls(
            num_layers=config["num_hidden_layers"],
            num_kv_heads=config.get("num_key_value_heads") or heads,
            num_attention_heads=heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            hidden_size=config["hidden_size"],
            vocab_size=config["vocab_size"],
            model_type=config["model_type"],
            model_dir=model_dir,
            intermediate_size=config.get("intermediate_size"),
            rope_theta=_rope_theta(config),
        )

    @property
    def attention_layers(self) -> tuple[int, ...]:
        return tuple(range(self.num_layers)) if self.attention_layer_ids is None else self.attention_layer_ids

    @property
    def described(self) -> str:
        layers = f"{self.num_layers} layers"
        if self.attention_layer_ids is not None:
            layers += f", of which {list(self.attention_layer_ids)} have head classes"
        heads = f"{self.num_attention_heads} query heads x {self.num_kv_heads} KV heads"
        return f"{self.model_type} with {layers} x {heads}"

    def identity(self, name: str | None = None) -> ModelIdentity:
        """The shape as a head-class file states it."""
        fields = {key: getattr(self, key) for key in ModelIdentity.model_fields if key != "name"}
        return ModelIdentity(name=name, **fields)

    def check_fit(self, profile: HeadProfile) -> None:
        """Raises HeadFitError, naming both shapes, unless `profile` has all attention layers and KV heads."""
        if profile.kind is HeadKind.MLA:
            raise HeadFitError(
                f"the head classes are for the logical heads of an MLA model ({profile.shape}), but the model"
                f" is {self.described}: give a file with KV-head classes"
            )
        missing = set(self.attention_layers) - set(profile.layer_ids)
        beyond = profile.layer_ids[-1] >= self.num_layers
        stated = self._stated_differences(profile.identity)
        if missing or beyond or profile.num_kv_heads != self.num_kv_heads or stated:
            raise HeadFitError(
                f"the head classes do not fit the model: they are for {profile.shape}"
                f" (layers {_ranges(profile.layer_ids)}){stated}; the model is {self.described}"
            )

    def _stated_differences(self, identity: ModelIdentity | None) -> str:
        if identity is None:
            return ""
        keys = ("num_layers", "num_attention_heads", "num_kv_heads", "head_dim")
        pairs = [(key, getattr(identity, key), getattr(self, key)) for key in keys]
        return "".join(
            f", {key} {theirs} (model: {ours})" for key, theirs, ours in pairs if theirs not in (None, ours)
        )

    def matches(self, identity: ModelIdentity) -> bool:
        """True iff all but the name is stated and equal: the rule for a bundled profile, nobody's choice."""
        keys = [key for key in ModelIdentity.model_fields if key != "name"]
        return all(
            getattr(identity, key) is not None and getattr(identity, key) == getattr(self, key)
            for key in keys
        )


def _rope_theta(config: Mapping[str, Any]) -> float | None:
    nested = config.get("rope_parameters")
    theta = config.get("rope_theta", nested.get("rope_theta") if isinstance(nested, Mapping) else None)
    return None if theta is None else float(theta)


def _ranges(ids: tuple[int, ...]) -> str:
    """Layer numbers for people: `0-29`, or the list where there are gaps."""
    return f"{ids[0]}-{ids[-1]}" if len(ids) == ids[-1] - ids[0] + 1 else str(list(ids))
