"""Prints pip's constraints for the oldest versions that pyproject.toml allows, for `make test-oldest`.

torch alone is the one of constraints.txt: which of its builds is right is the machine's business.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def oldest() -> dict[str, str]:
    """Returns the lower bound of every dependency by its name."""
    said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = (re.fullmatch(r"([\w-]+)(?:\[[^]]+\])?>=([\d.]+)", each) for each in said)
    return {each[1]: each[2] for each in found if each}


def main() -> None:
    """Prints a line for each dependency."""
    pinned = re.search(r"(?m)^torch==([^ ;\\]+)", (ROOT / "constraints.txt").read_text())
    assert pinned is not None
    for name, version in {**oldest(), "torch": pinned[1]}.items():
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
