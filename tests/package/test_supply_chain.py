"""What `make` installs is pinned by hash, compared with known vulnerabilities, and listed in a bill of materials."""

import importlib.metadata
import json
import shutil
import sys
import tomllib
import uuid
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
ADVISORIES = Path(__file__).with_name("advisories")
sys.path.insert(0, str(ROOT / "tools"))

import audit  # noqa: E402
import pins  # noqa: E402
import sbom  # noqa: E402

CUDA = set(pins.read_pins(ROOT / "constraints-cuda.txt"))


def list_needed(requirements):
    """Walks through all that these need on this machine, by name."""
    found, waiting = set(), [(Requirement(each), "") for each in requirements]
    while waiting:
        wanted, extra = waiting.pop()
        name = pins.normalise(wanted.name)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        for own in ("", *wanted.extras):
            if (name, own) not in found:
                found.add((name, own))
                waiting += [(Requirement(each), own) for each in importlib.metadata.requires(name) or []]
    return {name for name, _ in found}


def test_every_package_that_is_needed_is_pinned_with_hashes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]  # fmt: skip
    held = pins.read_pins(ROOT / "constraints.txt")
    needed = list_needed(wanted) - CUDA
    assert len(needed) > 100
    for name in needed:
        assert held[name].version == importlib.metadata.version(name).split("+")[0], name
    assert not CUDA & held.keys()
    assert "torch" in needed
    assert len(held["torch"].hashes) > 1  # one build for each kind of machine


def test_make_installs_by_those_hashes_alone():
    rules = (ROOT / "Makefile").read_text()
    install = rules.split(".venv/installed: ")[-1].split("\n\n")[0]
    assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(
        rules.split("PINNED :=")[1].split("\n\n")[0].split()
    )
    for line in (line for line in install.splitlines() if "pip install" in line):
        assert "--no-deps" in line
        assert "--no-build-isolation" in line
    assert "$(PINNED) --requirement constraints.txt" in install


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.0", "torch>=2.0 --hash=sha256:" + "0" * 64, "torch --hash=sha256:" + "0" * 64, "--index-url x",
        "torch==2.0 --hash=sha256:" + "0" * 63, "torch==2.0 --hash=md5:" + "0" * 64, "-r other.txt",
        "torch==2.0 --hash=sha256:" + "0" * 64 + "0", "x @ file:///x --hash=sha256:" + "0" * 64,
    ],
)  # fmt: skip
def test_a_line_that_is_no_pin_with_hashes_is_refused(tmp_path, line):
    (tmp_path / "pins.txt").write_text(f"# words\nnumpy==1.0 \\\n    --hash=sha256:{'1' * 64}\n{line}\n")
    with pytest.raises(ValueError, match="is no pin with hashes"):
        pins.read_pins(tmp_path / "pins.txt")


def test_pins_are_written_as_they_are_read_and_a_hash_of_no_index_stays(tmp_path, monkeypatch):
    for file in pins.FILES:
        shutil.copy(ROOT / file, tmp_path / file)
    monkeypatch.setattr(pins, "ROOT", tmp_path)
    before, old = pins.read_all(), pins.read_pins(tmp_path / "constraints.txt")["torch"]
    compiled = tmp_path / "compiled.txt"
    fewer = pins.Pin("torch", old.version, "", frozenset(sorted(old.hashes)[:2]))
    others = [pin for name, pin in before.items() if name != "torch"]
    compiled.write_text("".join(map(str, [*others, fewer])))
    (wheel := tmp_path / f"torch-{old.version}+cpu-cp311-none-any.whl").write_bytes(b"wheel")
    pins.main(str(compiled), str(wheel))
    assert pins.read_all()["torch"].hashes - old.hashes == {pins.hash_wheels([wheel])["torch", old.version]}
    assert pins.read_all()["torch"].hashes > old.hashes
    assert {name: pin for name, pin in pins.read_all().items() if name != "torch"} == {pin.name: pin for pin in others}
    compiled.write_text("".join(map(str, [*others, pins.Pin("torch", "99.0", "", fewer.hashes)])))
    pins.main(str(compiled))
    assert pins.read_all()["torch"].hashes == fewer.hashes


def test_a_known_vulnerability_is_found(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in ADVISORIES.iterdir():
            archive.write(file, file.name)
    for database in (ADVISORIES, tmp_path / "all.zip", ADVISORIES / "PYSEC-0000-1.yaml"):
        assert audit.main([str(database)]) == 1
        line, total = capsys.readouterr().out.splitlines()
        version = pins.read_all()["pillow"].version
        assert line == (
            f"pillow {version}: PYSEC-0000-1, CVE-0000-1; fixed in 9999.0; Made up for a test. Reading a forged "
            "picture writes outside the buffer."
        )
        assert total.endswith("1 found")
    assert audit.main([str(ADVISORIES / "GHSA-0000-2.json")]) == 0
    assert audit.main([]) == 0
    assert "audit skipped: no database of advisories was given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "fix"),
    [("0.5", "1.0"), ("1.0", None), ("2.0rc1", None), ("2.0", "2.3"), ("2.2.9", "2.3"), ("2.3", None), ("7", "none")],
)
def test_ranges_open_and_close(version, fix):
    events = [{"introduced": "2.0"}, {"fixed": "2.3"}, {"introduced": "0"}, {"fixed": "1.0"}]
    affected = {"package": {"ecosystem": "PyPI", "name": "A_b"}, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    advisory = {"id": "x", "affected": [{**affected, "versions": ["7"]}]}
    pin = pins.Pin("a-b", version, "", frozenset())
    assert audit.find_fix(advisory, pin) == fix
    assert audit.find_fix({**advisory, "withdrawn": "2026"}, pin) is None


@pytest.mark.parametrize("content", ["{", "[1]", '{"id": "x"}', "[" * 10000, '{"affected": []}'])
def test_a_database_that_cannot_be_read_is_an_error(tmp_path, capsys, content):
    assert audit.main([str(tmp_path)]) == 2
    (tmp_path / "a.json").write_text(content)
    assert audit.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_the_bill_of_materials_has_every_pin_with_its_licence_and_hashes(tmp_path, capsys):
    sbom.main(str(tmp_path / "deep" / "sbom.json"))
    bill = json.loads((tmp_path / "deep" / "sbom.json").read_text())
    assert "components; without a licence: " in capsys.readouterr().out
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    content = json.dumps({name: value for name, value in bill.items() if name != "serialNumber"}, sort_keys=True)
    assert bill["serialNumber"] == uuid.uuid5(uuid.NAMESPACE_URL, content).urn  # the same pins, the same bill
    held = pins.read_all()
    assert {each["name"]: each["version"] for each in bill["components"]} == {
        name: pin.version for name, pin in held.items()
    }
    for each in bill["components"]:
        (place,) = each["externalReferences"]
        assert {found["content"] for found in place["hashes"]} == held[each["name"]].hashes
        assert all(found["alg"] == "SHA-256" for found in place["hashes"])
        assert each["type"] == "library"
        assert each["purl"] == each["bom-ref"] == f"pkg:pypi/{each['name']}@{each['version']}"
        assert held[each["name"]].marker or each["licenses"][0]["license"]["name"], each["name"]
    own = bill["metadata"]["component"]
    refs = {own["bom-ref"], *(each["bom-ref"] for each in bill["components"])}
    assert {each["ref"] for each in bill["dependencies"]} == refs
    assert {ref for each in bill["dependencies"] for ref in each["dependsOn"]} < refs
    (needs,) = (each["dependsOn"] for each in bill["dependencies"] if each["ref"] == own["bom-ref"])
    assert f"pkg:pypi/torch@{held['torch'].version}" in needs
