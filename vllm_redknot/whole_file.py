"""Files that appear whole or not at all: whatever happens to the writer, a reader sees the old file or the new one."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Replaces `path` in one step, with UTF-8 that everybody may read. Raises OSError, which names `path`."""
    # A device or pipe would be replaced by a file of its name.
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes the file private; results and head classes are as public as the model they are about.
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        # It would name the temporary file, which nobody asked for.
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON document, replaced in one step. Raises OSError, and ValueError for numbers that JSON does not have."""
    write_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")
