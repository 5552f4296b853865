"""What training, export and painting gave before the code was moved about: seeded losses and hashes, bit for bit.

`rail.json` was recorded by this file's own `record`, run as a script. Sums round differently on other processors: there
losses, weights and pictures are compared to within rounding, and all else as it is here.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPTokenizer

from fewstep import assets
from fewstep.models.lora.comfyui import WORKFLOW_FILE
from miniatures import FAMILIES, save_miniature
from warm_command import Warm

RECORD = Path(__file__).parent / "rail.json"
UPDATES = 3
SOLVERS = ("ddim", "dpm-solver-2", "dpm-solver++2s")
_ALIKE = (
    "--steps", UPDATES, "--batch-size", 2, "--lr", "1e-2", "--log-every", 1, "--sample-every", 0, "--device", "cpu",
)  # fmt: skip
_VERSIONS = ("_diffusers_version", "transformers_version", "_transformers_version")
_LISTED_SINCE = ("learnt_words", "learnt_captions")
"""Entries of tokenizers that came later; they change no token."""
_UNSTABLE = (*_VERSIONS, *_LISTED_SINCE, "_name_or_path", "teacher_sha256", "local_files_only")
_LORA = ("--lora-rank", 3, "--lora-alpha", 6, "--guidance-range", 8.5, 8.5, "--guidance-scale", 8.5)


def runs() -> dict[str, list[Any]]:
    """The arguments of every training by its name; of the families' miniatures, and of the bundled teacher."""
    found: dict[str, list[Any]] = {}
    for family in FAMILIES:
        mini = ("--data", "pictures", *_ALIKE, "--ema-decay", 0.5)
        for solver in SOLVERS:
            common = ["distill", "scenes", "--teacher", family, "--solver", solver, *mini]
            found[f"{family}-whole-{solver}"] = common
            found[f"{family}-lora-{solver}"] = [*common, *_LORA]
        found[f"{family}-finetune"] = ["finetune", "scenes", "--model", family, *mini]
    for recipe in ("scenes", "scenes-lora"):
        found[recipe] = ["distill", recipe, *_ALIKE, "--pictures", 8]
    found["style"] = [
        "train-lora",
        "--data",
        "scenes-leaning",
        *_ALIKE[:-4],
        "--device",
        "cpu",
        "--pictures",
        8,
        "--lora-rank",
        4,
    ]
    return found


def processor() -> str:
    """Names what decides how sums round here."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kind = f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{kind}, torch {torch.__version__}"


def prepare(folder: Path) -> None:
    """Leaves the miniatures and some noise with captions in `folder`."""
    # The bundled tokenizer: one that learns from few captions breaks ties differently in every process.
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    for family in FAMILIES:
        save_miniature(family, tokenizer, folder / family)
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"a {'red' if i % 2 else 'blue'} star")


def measure(name: str, arguments: list[Any], folder: Path) -> dict[str, Any]:
    """Trains in `folder`, exports and paints with what was exported; gives losses, files and pictures."""
    done = Warm([*arguments, "--out", name], folder).wait()
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    model = folder / name / "model"
    found = {
        "losses": [line["loss"] for line in lines],
        "files": {
            file.relative_to(model).as_posix(): describe(file)
            for file in sorted(model.rglob("*.*"))
            if file.name != WORKFLOW_FILE  # younger than the record
        },
    }
    loras = ["--lora", f"{name}:0.7"] if name == "style" else []
    shown = "scenes-lcm" if name == "style" else f"{name}/model"
    painted = Warm(
        ["generate", "--model", shown, *loras, "--prompt", "a red star", "--steps", "2", "--seed", "3", "--count", "2",
         "--out", f"{name}-pictures", "--device", "cpu"], folder,
    ).wait()  # fmt: skip
    assert painted.returncode == 0, painted.stderr
    pictures = [np.asarray(Image.open(file)) for file in sorted((folder / f"{name}-pictures").iterdir())]
    return found | {"pictures": [[_sha256(each.tobytes()), round(float(each.mean()), 3)] for each in pictures]}


def describe(file: Path) -> dict[str, Any]:
    """A file's hash, without dates and versions; a safetensors file's names and shapes apart from its numbers."""
    if file.suffix != ".safetensors":
        text = file.read_text()
        if file.suffix == ".json":  # whose order says nothing
            content = {name: value for name, value in json.loads(text).items() if name not in _UNSTABLE}
            text = json.dumps(content, sort_keys=True)
        return {"text": _sha256(text.encode())}
    with safe_open(file, "pt") as opened:
        header = {key: value for key, value in (opened.metadata() or {}).items() if key != "modelspec.date"}
        tensors = {key: opened.get_tensor(key) for key in sorted(opened.keys())}
    # The teacher's hash says no more than its numbers do.
    header.pop("fewstep.teacher_sha256", None)
    names = [f"{key} {value.dtype} {tuple(value.shape)}" for key, value in tensors.items()]
    numbers = b"".join(value.contiguous().flatten().view(torch.uint8).numpy().tobytes() for value in tensors.values())
    size = sum(float(value.double().abs().sum()) for value in tensors.values())
    return {
        "header": _sha256(json.dumps(header, sort_keys=True).encode()), "names": _sha256("\n".join(names).encode()),
        "numbers": _sha256(numbers), "size": size,
    }  # fmt: skip


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("rail")
    prepare(made)
    return made


@pytest.mark.parametrize("name", runs())
def test_losses_files_and_pictures_are_what_they_were(name, folder):
    record = json.loads(RECORD.read_text())
    wanted, found = record["runs"][name], measure(name, runs()[name], folder)
    if record["processor"] == processor():
        assert found == wanted
        return
    assert found["losses"] == pytest.approx(wanted["losses"], rel=1e-3)
    assert found["files"].keys() == wanted["files"].keys()
    for file, held in wanted["files"].items():
        for part in ("text", "header", "names"):
            assert found["files"][file].get(part) == held.get(part), (file, part)
        if "size" in held:
            assert found["files"][file]["size"] == pytest.approx(held["size"], rel=1e-3)
    for (_, mean), (_, before) in zip(found["pictures"], wanted["pictures"], strict=True):
        assert mean == pytest.approx(before, abs=2)


def record(folder: Path) -> None:
    """Writes `rail.json` anew; only where a change of numbers is meant."""
    prepare(folder)
    made = {name: measure(name, arguments, folder) for name, arguments in runs().items()}
    RECORD.write_text(json.dumps({"processor": processor(), "runs": made}, indent=1) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
