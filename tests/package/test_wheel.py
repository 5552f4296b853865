"""The wheel, in an empty environment outside the checkout, paints with the bundled weights."""

import os
import subprocess
import sys
import venv
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PAINT = """
import torch
from diffusers import StableDiffusionPipeline
import fewstep
from fewstep import assets
assert "site-packages" in fewstep.__file__, fewstep.__file__
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
    venv.create(tmp_path / "env", with_pip=True)
    binaries = tmp_path / "env" / "bin"
    run(
        binaries / "python",
        "-m",
        "pip",
        "install",
        "-q",
        "--no-compile",
        "--constraint",
        CHECKOUT / "constraints.txt",
        wheel,
    )
    run(binaries / "fewstep", "distill", "--steps", 2, "--batch-size", 2, "--pictures", 8, "--out", "run")
    for model in ((), ("--model", "run/model")):  # the bundled one, and what was just made
        run(binaries / "fewstep", "generate", *model, "--prompt", "a red star", "--out", "pictures")
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    run(binaries / "python", "-c", PAINT)
    assert (tmp_path / "teacher.png").exists()
    assert (tmp_path / "student.png").exists()
