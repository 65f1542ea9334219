"""Refuse a machine that cannot hold the environment, before anything is installed.

Runs under whatever interpreter the user named: even an old one must get as far as the message.
"""

from __future__ import annotations

import argparse
import shutil
import sys

OLDEST = (3, 11)
NEWEST = (3, 13)


def complaints(version: tuple[int, int], compiler: str) -> list[str]:
    """What is missing, one line each: `version` is (major, minor), `compiler` the C++ compiler's command."""
    found = []
    if not OLDEST <= version <= NEWEST:
        found.append(
            f"Python {version[0]}.{version[1]} ({sys.executable}) is not supported: vLLM needs 3.11 to 3.13; "
            "name one with `make setup PYTHON=python3.12`"
        )
    if shutil.which(compiler) is None:
        found.append(
            f"no C++ compiler `{compiler}`: install gcc and g++ (Debian, Ubuntu: build-essential), "
            "or name one with `make setup CXX=...`"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiler", default="g++", help="the C++ compiler's command; default: %(default)s")
    found = complaints((sys.version_info[0], sys.version_info[1]), parser.parse_args().compiler)
    if found:
        sys.exit("\n".join("make setup: " + line for line in found))


if __name__ == "__main__":
    main()
