"""vLLM's entry point into the plugin."""


def register() -> None:
    """Called by vLLM in every process it starts. Cheap, idempotent, and inert unless REDKNOT is asked for."""
