"""What a command reports instead of a traceback."""


class CliError(Exception):
    """Something a command found wrong: one line that names what, and the remedy. Exit status 1."""
