"""Check that every pinned distribution is installed whole, and reinstall those that are not.

An installation that was interrupted can leave a package's metadata without its files, and pip takes that for
installed. Run by `make setup` in the new environment.
"""

import argparse
import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement


def pins(path: Path) -> list[Requirement]:
    """The requirements of one file that apply to this interpreter and machine."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [pin for pin in wanted if pin.marker is None or pin.marker.evaluate()]


def fault(pin: Requirement) -> str | None:
    """Why this pin is not satisfied, or None."""
    try:
        found = importlib.metadata.distribution(pin.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
    if not pin.specifier.contains(found.version, prereleases=True):
        return f"version {found.version} is installed"
    if found.files is None:
        return "installed without a list of files"
    # Byte code is listed too, and anyone may delete it.
    missing = [
        str(file) for file in found.files if file.suffix != ".pyc" and not Path(file.locate()).exists()
    ]
    return f"{len(missing)} files are missing, {missing[0]} first" if missing else None


def faults(wanted: list[Requirement]) -> dict[str, str]:
    """Pin -> what is wrong with it, for the unsatisfied ones."""
    return {str(pin): reason for pin in wanted if (reason := fault(pin)) is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", help="requirement files of exact pins")
    wanted = [pin for path in parser.parse_args().files for pin in pins(path)]
    broken = faults(wanted)
    if not broken:
        return
    for pin, reason in broken.items():
        print(f"reinstalling {pin}: {reason}", file=sys.stderr)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall"]
    subprocess.run([*pip, *broken], check=True)
    if broken := faults(wanted):
        sys.exit("\n".join(f"{pin}: {reason}" for pin, reason in broken.items()))


if __name__ == "__main__":
    main()
