"""Checks what we touch of vLLM against its releases: `python -m tools.check_vllm_contract WHEEL_OR_FOLDER ...`.

Give the releases oldest first. With --write the outcome goes to docs/compatibility.json and docs/compatibility.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.vllm_contract.page import PAGE, page
from tools.vllm_contract.result import run, save


def main() -> int:
    """Prints the outcome; 1 if something is missing, or changed and not reviewed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("releases", nargs="+", type=Path, help="a vLLM wheel, or a folder that holds vllm/")
    parser.add_argument("--write", action="store_true", help="keep the outcome in docs/")
    arguments = parser.parse_args()
    outcome = run(arguments.releases)
    failed = False
    for release in outcome["releases"]:
        print(
            f"vLLM {release['version']}: {sum(release['checks'].values())} checks, {len(release['problems'])} problems"
        )
        for problem in release["problems"]:
            print(f"  {problem}")
        failed |= bool(release["problems"])
    for drift in outcome["drift"]:
        seen, unseen = drift["reviewed"], drift["unreviewed"]
        print(f"{drift['from']} to {drift['to']}: {len(seen)} differences reviewed, {len(unseen)} not")
        for item in unseen:
            print(f"  {item}: look at it, then give a verdict in tools/vllm_contract/reviewed.py")
        failed |= bool(unseen)
    if arguments.write:
        save(outcome)
        PAGE.write_text(page(outcome))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
