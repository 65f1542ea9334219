"""What `redknot eval` and `bench` set beside stock vLLM: REDKNOT as asked for, and in an ablation its parts alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vllm_redknot.ablation import HEADS, LABELS, REDKNOT, ROWS, Name
from vllm_redknot.cli.errors import CliError
from vllm_redknot.cli.serve_flags import redknot_section
from vllm_redknot.cli.target import Target, settings
from vllm_redknot.config import ALL_GLOBAL, RedknotConfig
from vllm_redknot.heads.profile import HeadProfile, all_global
from vllm_redknot.rows.schedule import RowSchedule, RowScheduleError, schedule_of

HEAD_SETTINGS: Final = ("heads", "window", "sink", "dense_prefix_layers")


@dataclass(frozen=True)
class Configuration:
    """An engine with REDKNOT: its settings, and what they come to."""

    name: Name
    config: RedknotConfig
    profile: HeadProfile
    rows: RowSchedule | None

    @property
    def label(self) -> str:
        """Its name in an ablation."""
        return LABELS[self.name]

    @property
    def section(self) -> dict[str, Any]:
        """The settings an engine is given."""
        return redknot_section(self.config, ())

    def described(self) -> dict[str, Any]:
        """What documents say of it."""
        return {
            "description": self.profile.describe(),
            "row_schedule": None if self.rows is None else self.rows.to_section(),
        }


def row_schedule(target: Target, config: RedknotConfig) -> RowSchedule | None:
    """The schedule of rows in force: the settings', else the head file's, else none.

    Raises:
        CliError: A wrong key or value, or a layer that the model has not.
    """
    try:
        schedule = schedule_of(config.rows, target.profile.sections)
        if schedule is not None and target.model is not None:
            schedule.check_model(target.model.shape.num_layers, target.model.shape.hidden_size)
    except RowScheduleError as error:
        raise CliError(str(error)) from error
    return schedule


def configurations(target: Target, config: RedknotConfig, ablation: bool) -> tuple[Configuration, ...]:
    """REDKNOT as `config` has it, last; in an ablation after it without rows, and with all heads global.

    Raises:
        CliError: The schedule does not fit, there is none to leave out, or a REDKNOT_* variable of the environment
            would hold in every configuration.
    """
    schedule = row_schedule(target, config)
    whole = Configuration(REDKNOT, config, target.profile, schedule)
    if not ablation:
        return (whole,)
    if schedule is None:
        raise CliError(
            "--ablation tells head classes from row skipping, and there is no schedule of rows: give --rows, or a"
            ' head file with a section "rows"'
        )
    assert target.model is not None
    shape = target.model.shape
    global_heads = {key: ALL_GLOBAL if key == "heads" else None for key in HEAD_SETTINGS}
    parts = (
        Configuration(HEADS, config.model_copy(update={"rows": "off"}), target.profile, None),
        Configuration(
            ROWS,
            config.model_copy(update={**global_heads, "rows": schedule.to_section()}),
            all_global(shape.attention_layers, shape.num_kv_heads),
            schedule,
        ),
        whole,
    )
    for part in parts:
        _check_in_force(part)
    return parts


def _check_in_force(part: Configuration) -> None:
    """Variables override what an engine is told: then it would not be the configuration it is called."""
    found = settings(**part.section)
    for key in RedknotConfig.model_fields:
        if getattr(found, key) != getattr(part.config, key):
            raise CliError(
                f"REDKNOT_{key.upper()} is set and would hold in every configuration of the ablation: unset it and"
                " give the option"
            )
