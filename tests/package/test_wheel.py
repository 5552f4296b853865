"""The wheel, in an environment of its own outside the checkout, paints with the bundled weights."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PAINT = """
import torch
from diffusers import StableDiffusionPipeline
import fewstep
from fewstep import assets
from fewstep.cli import main
main(["generate", "--prompt", "a red star", "--out", "pictures"])
main("distill --steps 2 --batch-size 2 --pictures 8 --out run".split())
main(["generate", "--model", "run/model", "--prompt", "a red star", "--out", "pictures"])
assert "env/lib" in fewstep.__file__, fewstep.__file__
pipe = StableDiffusionPipeline.from_pretrained(assets.scenes_teacher())
pipe("a red star", num_inference_steps=2).images[0].save("teacher.png")
fewstep.load("run/model")("a red star", steps=2, seed=7)[0].save("student.png")
"""


def test_wheel_installs_and_paints(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command):
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", CHECKOUT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "env")
    binaries = tmp_path / "env" / "bin"
    # The libraries are those of this environment: to unpack torch once more takes a minute and shows nothing.
    own = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python")
    run(*pip, "install", "-q", "--no-compile", "--ignore-installed", "--no-deps", wheel)
    assert run(binaries / "fewstep", "--version").stdout.startswith("fewstep ")
    run(binaries / "python", "-c", PAINT)  # distils and paints in one process, which imports once
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert (tmp_path / "teacher.png").exists()
    assert (tmp_path / "student.png").exists()


def test_every_library_that_is_imported_is_declared():
    """Else only an environment without the tools of development would notice."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = [each for name, listed in project["optional-dependencies"].items() if name != "dev" for each in listed]
    declared = {_normal(re.split(r"[\[<>=~! ;]", each)[0]) for each in (*project["dependencies"], *extras)}
    owners = importlib.metadata.packages_distributions()
    imported = {name for file in (CHECKOUT / "src").rglob("*.py") for name in _imports(ast.parse(file.read_text()))}
    foreign = imported - set(sys.stdlib_module_names) - {"fewstep"}
    assert {"torch", "diffusers", "openvino"} <= foreign
    unknown = {name for name in foreign if not declared & {_normal(each) for each in owners.get(name, [])}}
    # What diffusers, transformers, fastapi and fsspec[http] cannot do without.
    assert unknown <= {"huggingface_hub", "tqdm", "starlette", "aiohttp"}, unknown


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found
