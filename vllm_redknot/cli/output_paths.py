"""Places for results, looked at before the work that makes them."""

from __future__ import annotations

import os
from pathlib import Path

from vllm_redknot.cli.errors import CliError


def check_folder(folder: Path, option: str, *names: str) -> None:
    """Whether files of these names can be put into a folder, which may have to be made; makes nothing.

    Args:
        option: what of the command line names the folder.

    Raises:
        CliError: They cannot; names what is in the way.
    """
    absolute = folder.absolute()
    nearest = next(place for place in (absolute, *absolute.parents) if place.exists())
    if not nearest.is_dir():
        raise CliError(f"{option}: {nearest} is no folder, give another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CliError(f"{option}: {nearest} cannot be written, give another place")
    for name in names:
        if (folder / name).is_dir():
            raise CliError(
                f"{option}: {folder / name} is a folder, and a file is to be there: move it away, or give another place"
            )


def check_file(path: Path, option: str) -> None:
    """As `check_folder`, for a file whose folder is made where it is missing."""
    check_folder(path.parent, option, path.name)
