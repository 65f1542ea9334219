"""A plan as a picture: KV bytes and attention FLOPs over contexts, stock and REDKNOT told apart by line and marker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vllm_redknot.cli.capacity_plan import ContextPlan, Cost
from vllm_redknot.cli.head_map_png import load_pyplot
from vllm_redknot.cli.units import show_tokens

PANELS: Final[tuple[tuple[str, str, Callable[[Cost], float]], ...]] = (
    ("KV of one request", "GiB", lambda cost: cost.request_bytes / 2**30),
    ("attention, prefill", "TFLOP", lambda cost: cost.work.prefill / 1e12),
    ("attention, next token", "GFLOP", lambda cost: cost.work.decode / 1e9),
)
LINES: Final = (("stock", "#4a4e69", "--", "s"), ("redknot", "#d1495b", "-", "o"))


def save_plan(plans: Sequence[ContextPlan], title: str, path: Path) -> None:
    """Write the picture. Raises CliError without matplotlib, OSError where `path` cannot be written."""
    pyplot = load_pyplot()
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(11, 3.4), dpi=150)
    contexts = [plan.context for plan in plans]
    for axes, (name, unit, value) in zip(panels, PANELS, strict=True):
        for attribute, colour, style, marker in LINES:
            values = [value(getattr(plan, attribute)) for plan in plans]
            label = "REDKNOT" if attribute == "redknot" else "stock vLLM"
            axes.plot(contexts, values, style, color=colour, marker=marker, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(contexts, [show_tokens(context) for context in contexts], fontsize=7)
        axes.tick_params(axis="y", which="both", labelsize=7)
        axes.set_xlabel("context, tokens", fontsize=8)
        axes.set_title(f"{name}, {unit}", fontsize=9)
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
