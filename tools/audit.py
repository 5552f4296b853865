"""Says which pins have known vulnerabilities, by a database of advisories on this disk; nothing is asked of a network.

    python tools/audit.py DATABASE …

A database is a folder or a .zip of advisories in the OSV form (.json or .yaml), as the Python Packaging Authority and
OSV publish theirs, or one such file. The exit status is 1 where something is found, and 2 where nothing could be read.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

from pins import Pin, normalise, read_all

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_advisories(database: Path) -> Iterator[dict[str, Any]]:
    """Yields the advisories of a database. Raises ValueError, with its name, for a file that holds none."""
    if database.suffix == ".zip":
        with zipfile.ZipFile(database) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith((".json", ".yaml", ".yml")):
                    yield from _parse(f"{database}/{name}", archive.read(name).decode())
        return
    files = [database] if database.is_file() else sorted(database.rglob("*"))
    for file in files:
        if file.suffix in (".json", ".yaml", ".yml") and file.is_file():
            yield from _parse(str(file), file.read_text())


def _parse(name: str, text: str) -> Iterator[dict[str, Any]]:
    try:
        content = json.loads(text) if name.endswith(".json") else yaml.load(text, _LOADER)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read: {' '.join(str(error).split())[:100]}") from error
    for each in content if isinstance(content, list) else [content]:
        if not isinstance(each, dict) or not isinstance(each.get("affected"), list) or "id" not in each:
            raise ValueError(f"{name} is no advisory in the OSV form")
        yield each


def find_fix(advisory: Mapping[str, Any], pin: Pin) -> str | None:
    """Returns the version that mends it ("none" where there is none yet), or None where the pin is not affected."""
    for affected in advisory["affected"] if "withdrawn" not in advisory else ():
        package = affected.get("package", {})
        if package.get("ecosystem") != "PyPI" or normalise(str(package.get("name"))) != pin.name:
            continue
        ranges = [each["events"] for each in affected.get("ranges", ()) if each.get("type") == "ECOSYSTEM"]
        if pin.version in affected.get("versions", ()) or any(_is_within(pin.version, events) for events in ranges):
            fixes = [str(event["fixed"]) for events in ranges for event in events if "fixed" in event]
            later = [fix for fix in fixes if _order(fix) > _order(pin.version)]
            return min(later, key=_order, default="none")
    return None


def _is_within(version: str, events: list[dict[str, str]]) -> bool:
    """Returns whether a range is open at that version, going through its events in their order."""
    inside = False
    for event in sorted(events, key=lambda event: _order(str(next(iter(event.values()))))):
        (kind, at), *_ = event.items()
        if kind == "introduced" and _order(version) >= _order(str(at)):
            inside = True
        elif (kind == "fixed" and _order(version) >= _order(str(at))) or (
            kind == "last_affected" and _order(version) > _order(str(at))
        ):
            inside = False
    return inside


def _order(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0")


def audit(pins: Mapping[str, Pin], databases: list[Path]) -> tuple[int, list[str]]:
    """Returns how many advisories there are, and a line for each that a pin has."""
    count, found = 0, []
    for database in databases:
        for advisory in read_advisories(database):
            count += 1
            names = {normalise(str(each.get("package", {}).get("name"))) for each in advisory["affected"]}
            for pin in (pins[name] for name in sorted(names & pins.keys())):
                if (fix := find_fix(advisory, pin)) is not None:
                    known = ", ".join([advisory["id"], *advisory.get("aliases", ())])
                    summary = " ".join(str(advisory.get("summary") or advisory.get("details") or "").split())[:120]
                    found.append(f"{pin.name} {pin.version}: {known}; fixed in {fix}; {summary}")
    return count, found


def main(databases: list[str]) -> int:
    """Prints what is found; returns the exit status."""
    if not databases:
        print("audit skipped: no database of advisories was given; name one with: make audit ADVISORIES=FOLDER")
        return 0
    pins = read_all()
    try:
        count, found = audit(pins, [Path(each) for each in databases])
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        print(f"audit: error: {error}", file=sys.stderr)
        return 2
    if not count:
        print(f"audit: error: no advisory in {', '.join(databases)}", file=sys.stderr)
        return 2
    print("\n".join([*found, f"audit: {len(pins)} pins, {count} advisories, {len(found)} found"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
