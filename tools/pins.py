"""Reads and writes the pins: the version of everything that `make` installs, and the hashes of its files.

constraints.txt has what every machine needs, constraints-cuda.txt what torch's builds for NVIDIA's GPUs need besides.
`make pins` resolves them anew:

    python tools/pins.py COMPILED [WHEEL …]

takes what uv has compiled, and the hashes of wheels that lie on this disk and are in no index. A hash that stands in
the files already and not in what was compiled stays, as long as its version does.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = {
    "constraints.txt": "What `make` installs: every version, and the sha256 of each of its files, for any machine.",
    "constraints-cuda.txt": "What torch needs besides where its build is for NVIDIA's GPUs.",
}
_CUDA = re.compile(r"(cuda|nvidia)-|triton$")
_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.!+_-]+)(?:\s*;\s*(?P<marker>.+))?")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?![0-9a-f])")


@dataclass(frozen=True)
class Pin:
    """One version of one package."""

    name: str
    version: str
    marker: str
    """On which machines it is needed; empty for all."""
    hashes: frozenset[str]
    """Hexadecimal sha256 of every file that may be installed."""

    def __str__(self) -> str:
        head = f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")
        return " \\\n".join([head, *(f"    --hash=sha256:{each}" for each in sorted(self.hashes))]) + "\n"


def normalise(name: str) -> str:
    """Returns the one spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(file: Path) -> dict[str, Pin]:
    """Returns the pins of a file by name. Raises ValueError for a line that is none, or has no hash."""
    text = re.sub(r"(?m)^\s*#.*\n?", "", file.read_text())
    pins: dict[str, Pin] = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        head, hashes = _HASH.split(line)[0].strip(), frozenset(_HASH.findall(line))
        found = _PIN.fullmatch(head)
        if line.strip() and (found is None or not hashes or _HASH.sub("", line).strip() != head):
            raise ValueError(f"{file.name}: {line[:80]!r} is no pin with hashes")
        if found:
            pin = Pin(normalise(found["name"]), found["version"], found["marker"] or "", hashes)
            if pin.name in pins:
                raise ValueError(f"{file.name}: {pin.name} is pinned twice")
            pins[pin.name] = pin
    return pins


def read_all() -> dict[str, Pin]:
    """Returns the pins of both files."""
    return {name: pin for file in FILES for name, pin in read_pins(ROOT / file).items()}


def hash_wheels(wheels: Iterable[Path]) -> dict[tuple[str, str], str]:
    """Returns the hash of each wheel by package and version, without the version's local part."""
    found = {}
    for wheel in wheels:
        name, version, *_ = wheel.name.split("-")
        with wheel.open("rb") as file:
            found[normalise(name), version.split("+")[0]] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def join(compiled: Mapping[str, Pin], held: Mapping[str, Pin], wheels: Mapping[tuple[str, str], str]) -> list[Pin]:
    """Returns the compiled pins in order, with the hashes that no index has."""
    joined = []
    for name, pin in sorted(compiled.items()):
        if "sys_platform == 'emscripten'" in pin.marker:  # a browser, in which no torch runs
            continue
        same = held[name].hashes if name in held and held[name].version == pin.version else frozenset()
        own = {wheels[name, pin.version]} if (name, pin.version) in wheels else set()
        joined.append(replace(pin, hashes=pin.hashes | same | own))
    return joined


def main(compiled: str, *wheels: str) -> None:
    """Writes both files."""
    held = read_all() if all((ROOT / file).exists() for file in FILES) else {}
    pins = join(read_pins(Path(compiled)), held, hash_wheels(map(Path, wheels)))
    for (file, said), cuda in zip(FILES.items(), (False, True), strict=True):
        own = (str(pin) for pin in pins if bool(_CUDA.match(pin.name)) == cuda)
        (ROOT / file).write_text(f"# {said} `make pins` writes this file.\n" + "".join(own))


if __name__ == "__main__":
    main(*sys.argv[1:])
