"""Writes the software bill of materials of a release, in CycloneDX's JSON: each pin with its licence and hashes.

    python tools/sbom.py FILE

Licences are those that the installed packages state; what is not installed on this machine, as what only other machines
need, is listed without. The same pins give the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from pins import ROOT, Pin, normalise, read_all

_LONGEST = 80
"""Letters of what is the name of a licence, and not its text."""


def make_sbom(pins: Mapping[str, Pin]) -> dict[str, Any]:
    """Returns the bill of what the package and its development need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = f"pkg:pypi/{project['name']}@{project['version']}"
    refs = {name: f"pkg:pypi/{name}@{pin.version}" for name, pin in sorted(pins.items())}
    direct = {normalise(Requirement(each).name) for each in project["dependencies"]}
    graph = {own: direct, **{refs[name]: _list_needs(name) for name in refs}}
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": own, "name": project["name"], "version": project["version"],
                "purl": own, "description": project["description"],
                "licenses": [{"license": {"id": project["license"]}}],
            },
        },
        "components": [_describe(pin, refs[name]) for name, pin in sorted(pins.items())],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(refs[name] for name in needs if name in refs)}
            for ref, needs in graph.items()
        ],
    }  # fmt: skip
    content = json.dumps(bill, sort_keys=True)
    return {**bill, "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, content).urn}


def _describe(pin: Pin, ref: str) -> dict[str, Any]:
    files = [{"alg": "SHA-256", "content": each} for each in sorted(pin.hashes)]
    return {
        "type": "library", "bom-ref": ref, "name": pin.name, "version": pin.version, "purl": ref,
        **({"licenses": [{"license": {"name": licence}}]} if (licence := read_licence(pin.name)) else {}),
        # One of several files is installed, each with a hash of its own.
        "externalReferences": [{"type": "distribution", "url": ref, "hashes": files}],
        **({"properties": [{"name": "fewstep:marker", "value": pin.marker}]} if pin.marker else {}),
    }  # fmt: skip


def read_licence(name: str) -> str:
    """Returns what an installed package says its licence is, or nothing."""
    try:
        said = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
    classified = [each.split(" :: ")[-1] for each in said.get_all("Classifier") or () if each.startswith("License :: ")]
    plain = " ".join((said.get("License") or "").split())
    named = [said.get("License-Expression") or "", plain if len(plain) <= _LONGEST else "", " AND ".join(classified)]
    begun = re.split(r"[.(]| Copyright", plain)[0][:_LONGEST].strip()
    return next((each for each in (*named, begun) if each), _read_title(name))


def _read_title(name: str) -> str:
    """Returns the first line of the licence that lies beside an installed package, which is its name; or nothing."""
    package = importlib.metadata.distribution(name)
    named = {f"licenses/{each}" for each in package.metadata.get_all("License-File") or ()}
    files = [each for each in package.files or () if "/".join(each.parts[1:]) in named]
    texts = [Path(str(each.locate())).read_text(errors="replace").strip() for each in files]
    return next((text.splitlines()[0][:_LONGEST] for text in texts if text), "")


def _list_needs(name: str) -> set[str]:
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return set()
    wanted = [Requirement(each) for each in needs]
    return {normalise(each.name) for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})}


def main(file: str) -> None:
    """Writes the file and says what it holds."""
    bill = make_sbom(read_all())
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(json.dumps(bill, indent=2, sort_keys=True) + "\n")
    without = [each["name"] for each in bill["components"] if "licenses" not in each]
    print(f"{file}: {len(bill['components'])} components; without a licence: {', '.join(without) or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1])
