"""What the profiler reports instead of a traceback."""


class ProfilerError(Exception):
    """A model, data or run folder that cannot be profiled: one line that names what, and the remedy."""
