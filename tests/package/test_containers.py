"""The files for containers, editors and people who cite or report: parsed, since no engine is at hand."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from fewstep.arguments import parse_arguments
from fewstep.cli import parse_training
from fewstep.commands.serve import Serve

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_stages():
    """Returns the instructions of each stage of the Containerfile, after those of the stage that it is built on."""
    text = re.sub(r"^#.*\n", "", (ROOT / "deploy/Containerfile").read_text(), flags=re.MULTILINE)
    stages, name = {}, ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, between, name = rest.partition(" AS ")
            assert between, line
            assert base in stages or re.fullmatch(r"docker\.io/library/python:3\.\d+-slim", base), base
            stages[name] = [("FROM", base), *stages.get(base, [])[1:]]
        else:
            assert word in {
                "COPY",
                "RUN",
                "ENV",
                "WORKDIR",
                "VOLUME",
                "EXPOSE",
                "HEALTHCHECK",
                "ENTRYPOINT",
                "CMD",
                "USER",
            }
            stages[name].append((word, rest))
    return stages


STAGES = read_stages()


def last(stage, word):
    return [rest for each, rest in STAGES[stage] if each == word][-1]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_both_images_serve_the_page_and_run_as_nobody_special(target):
    assert last(target, "USER") == "painter"
    assert STAGES[target][-1] == ("USER", "painter")
    assert json.loads(last(target, "ENTRYPOINT")) == list(PROJECT["scripts"])
    command, *words = json.loads(last(target, "CMD"))
    assert command == "serve"
    config = parse_arguments(Serve(), words, "fewstep serve")
    assert (config.host, config.token, str(config.port)) == ("0.0.0.0", "random", last(target, "EXPOSE"))
    assert f":{config.port}/healthz" in last(target, "HEALTHCHECK")
    compile(json.loads(last(target, "HEALTHCHECK").partition("CMD ")[2])[2], "healthcheck", "exec")
    installs = [rest for word, rest in STAGES[target] if word == "RUN" and "pip install" in rest]
    assert all("--constraint /tmp/versions.txt" in each for each in " && ".join(installs).split("pip install")[1:])
    assert ("download.pytorch.org/whl/cpu" in " ".join(installs)) == (target == "cpu")


def test_what_is_copied_is_there_and_not_left_out():
    ignored = (ROOT / ".containerignore").read_text()
    assert ignored == (ROOT / ".dockerignore").read_text()
    kept = {line[1:] for line in ignored.splitlines() if line.startswith("!")}
    copied = {name for word, rest in STAGES["source"] if word == "COPY" for name in rest.split()[:-1]}
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)
    assert PROJECT["readme"] in copied
    assert set(PROJECT["license-files"]) <= copied


def test_the_versions_of_the_image_are_the_pins(tmp_path):
    """The image's own command makes them."""
    (filtering,) = re.findall(r"sed .*? > versions\.txt", last("source", "RUN"))
    subprocess.run(
        ["bash", "-c", filtering.replace("versions.txt", str(tmp_path / "versions.txt"))], cwd=ROOT, check=True
    )
    made = (tmp_path / "versions.txt").read_text().splitlines()
    pins = re.findall(r"^[A-Za-z0-9._-]+==.*?(?= *\\$)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert made == pins
    assert len(made) > 100
    assert any(line.startswith("torch==") for line in made)


def test_compose_shows_the_page_to_this_machine_alone():
    found = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert found["services"].keys() == {"page", "page-cuda"}
    for service in found["services"].values():
        assert service["build"]["target"] in STAGES
        assert (ROOT / service["build"]["dockerfile"]).exists()
        name, *words = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in service["command"]]
        assert name == "serve"
        config = parse_arguments(Serve(), words, "fewstep serve")
        assert (config.host, config.model, config.token) == ("0.0.0.0", "scenes-lcm", "random")
        assert service["ports"] == [f"127.0.0.1:{config.port}:{config.port}"]
        places = {volume.rpartition(":")[2] for volume in service["volumes"]}
        assert all(any(place.startswith(each) for each in json.loads(last("run", "VOLUME"))) for place in places)
        assert service["read_only"]
    (device,) = found["services"]["page-cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "cache" in found["volumes"]


def test_the_commands_of_the_page_are_known():
    text = (ROOT / "docs/containers.md").read_text()
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    seen = 0
    for line in (
        line
        for block in re.findall(r"```\n(.*?)```", text.replace("\\\n", ""), re.DOTALL)
        for line in block.splitlines()
    ):
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"FEWSTEP_\w+=", word)]
        if words[:2] == ["podman", "build"]:
            options = dict(zip(words[2:-1:2], words[3:-1:2], strict=True))
            assert (ROOT / options["--file"]).exists()
            assert options["--tag"] == f"fewstep:{options['--target']}"
            assert options["--target"] in STAGES
        elif words[:2] == ["podman", "run"]:
            place = next(i for i, word in enumerate(words) if word.startswith("fewstep:"))
            assert words[place].partition(":")[2] in STAGES
            assert words[place + 1] == "distill"
            parse_training("distill", words[place + 2 :])
        else:
            assert words[:2] == ["docker", "compose"]
            assert words[-1] == "up" or words[-1] in services
        seen += 1
    assert seen >= 6


def test_the_development_container_sets_up_the_checkout():
    found = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert all(target in targets for target in re.findall(r"make ([\w-]+)", found["postCreateCommand"]))
    assert {str(port) for port in found["forwardPorts"]} == found["portsAttributes"].keys()
    image, version = found["image"].split(":")
    assert image.startswith("mcr.microsoft.com/devcontainers/python")
    assert tuple(map(int, version.split("."))) >= (3, 11)


def test_the_citation_is_of_this_version():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found.keys() >= {"cff-version", "message", "title", "authors", "version", "license"}
    assert (found["title"], found["version"], found["license"]) == (
        PROJECT["name"], PROJECT["version"], PROJECT["license"],
    )  # fmt: skip
    assert all(author.keys() <= {"name", "family-names", "given-names"} for author in found["authors"])
    for each in found["references"]:
        assert each.keys() == {"type", "title", "authors", "year", "url"}


@pytest.mark.parametrize("name", ["fault.yml", "wish.yml"])
def test_issue_forms_are_what_their_schema_wants(name):
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / name).read_text())
    assert form.keys() == {"name", "description", "labels", "body"}
    asked = [each for each in form["body"] if each["type"] != "markdown"]
    assert all(each["type"] in ("input", "textarea") and each["attributes"]["label"] for each in asked)
    assert len({each["id"] for each in asked}) == len(asked)
    assert any(each.get("validations", {}).get("required") for each in asked)


def test_the_release_checklist_names_what_is_there():
    text = (ROOT / "docs/release.md").read_text()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)", text)) <= set(targets)
    for path in re.findall(r"`([\w./-]+\.(?:toml|cff|md|py)|deploy/\w+|studies/)`", text):
        assert (ROOT / path).exists(), path
