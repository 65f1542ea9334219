"""The part of a model's shape that head classes depend on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vllm_redknot.heads.errors import HeadFitError
from vllm_redknot.heads.profile import HeadKind, HeadProfile, ModelIdentity

LINEAR_KINDS: Final = frozenset({"linear_attention", "mamba", "recurrent", "conv"})
"""Values of a configuration's `layer_types` without KV heads."""


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


def _ranges(ids: tuple[int, ...]) -> str:
    """Layer numbers for people: `0-29`, or the list where there are gaps."""
    return f"{ids[0]}-{ids[-1]}" if len(ids) == ids[-1] - ids[0] + 1 else str(list(ids))
