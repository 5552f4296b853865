"""The examples, run as people run them, at small sizes: what they print and write is there."""

import contextlib
import io
import json
import re
import runpy
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from PIL import Image

import fewstep

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--updates", "2", "--batch-size", "2"]


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fewstep.commands.evaluate.TEACHER_STEPS", 1)
    monkeypatch.setattr("fewstep.evaluate.scenes_bench.REFERENCE_SCENES", 128)


def run(name, *options):
    """Runs a script and returns what it printed."""
    said, before = io.StringIO(), sys.argv
    sys.argv = [name, *options]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = before
    return said.getvalue()


def test_paint():
    run("paint.py", "--steps", "1", "2")
    assert Image.open("pictures/steps.png").size == (3 * 64, 2 * 64)
    assert Image.open("pictures/guidance.png").size == (3 * 64, 64)
    before, after = (Image.open("pictures/changed.png").crop((64 * i, 0, 64 * i + 64, 64)) for i in (0, 1))
    assert before.tobytes() != after.tobytes()


def test_distill():
    said = run("distill.py", *SMALL, "--pictures", "8")
    assert re.search(r"loss: 0\.\d+ at update 2, 0\.\d+ at 2", said)
    out = Path("runs/example-distill")
    assert {file.name for file in out.glob("*.png")} == {f"prompt-{i}-steps-{n}.png" for i in (0, 1) for n in (1, 4)}
    assert "is finished" in run("distill.py", *SMALL, "--pictures", "8")


def test_lcm_lora_and_style_mix():
    run("lcm_lora.py", *SMALL, "--pictures", "8")
    lcm_lora = Path("runs/example-lcm-lora/model")
    assert Image.open("runs/example-lcm-lora/diffusers.png").size == (64, 64)
    run("style_mix.py", *SMALL, "--lcm-lora", str(lcm_lora), "--scales", "0", "1")
    out = Path("runs/example-style-mix")
    assert (out / "style-0.png").exists()
    assert (out / "both" / "pytorch_lora_weights.safetensors").exists()


def test_evaluate():
    said = run("evaluate.py", "--n", "128", "--steps", "1", "--samplers", "ddim", "--workers", "1")
    assert re.search(r"^scenes-lcm +lcm +1 +[\d.]+% +[\d.]+%$", said, re.MULTILINE)
    assert Path("runs/example-evaluation/0/report.html").exists()


def test_custom_method():
    said = run("custom_method.py", "--updates", "40")
    assert len(re.findall(r"^(log-cosh|pseudo-Huber), [124] steps: [\d.]+ thousandths", said, re.MULTILINE)) == 6


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.glob("*.ipynb")))
def test_a_notebook_runs(name, monkeypatch):
    """Cell by cell in one namespace; after a cell of parameters, small ones take their place."""
    monkeypatch.setattr(fewstep, "load", keep_loaded(fewstep.load))
    small = {"UPDATES": 2, "BATCH": 2, "PICTURES": 8, "N": 128, "SAMPLERS": []}
    book, names = json.loads((EXAMPLES / name).read_text()), {}
    assert book["nbformat"] == 4
    with mpl.rc_context({"backend": "Agg"}):
        for cell in book["cells"]:
            assert isinstance(cell["source"], (str, list))
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), name, "exec"), names)
                if "parameters" in cell["metadata"].get("tags", []):
                    assert small.keys() <= names.keys()
                    names.update(small)


def keep_loaded(load):
    """Loads each model once."""
    kept = {}

    def find(model="scenes-lcm"):
        return kept[str(model)] if str(model) in kept else kept.setdefault(str(model), load(model))

    return find


def test_the_page_of_examples_lists_them():
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    listed = set(re.findall(r"^\| `(\w+\.\w+)`", page, re.MULTILINE))
    assert listed == {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}
