"""Latents prepared from shards: whatever is killed and however it is shared, the same bytes; and training on them."""

import io
import json
import os
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, safe_open

from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.files import LOCK_FILE
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.recipes.pictures import TrainingConfig
from fewstep.runs.material import open_material
from warm_command import Warm, run_warm_together
from written_shards import picture, sample, write_tar

SHARDS, EACH = 6, 14


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """As img2dataset writes them, one picture of each broken."""
    folder, scenes = tmp_path_factory.mktemp("shards"), Scenes(5)
    for number in range(SHARDS):
        members = {}
        for i in range(EACH):
            scene, file = scenes[number * EACH + i], io.BytesIO()
            scene.image.save(file, "JPEG", quality=95)
            content = file.getvalue() if i != 3 else picture(kind="JPEG")[:200]
            members |= sample(f"{number:05}{i:04}", scene.caption, content)
        write_tar(folder / f"{number:05}.tar", members)
    return folder


def arguments(tiny, shards, out, *more):
    return (
        "prepare", "--model", tiny, "--data", shards, "--resolution", 16, "--out", out, "--part", 10,
        "--batch-size", 4, "--workers", 1, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return {"FEWSTEP_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def undisturbed(tiny, shards, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "whole"
    Warm(arguments(tiny, shards, out.with_name("first")), env=cache).wait()  # fills the cache of indexes
    done = Warm(arguments(tiny, shards, out), env=cache).wait()
    assert done.returncode == 0, done.stderr
    assert f"prepared: {SHARDS * EACH} pictures, {SHARDS * (EACH - 1)} used, {SHARDS} broken picture" in done.stdout
    return out


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_prepared(undisturbed):
    out = undisturbed
    held = json.loads((out / "prepared.json").read_text())
    assert held["report"] == {"found": 84, "used": 78, "dropped": {"broken picture": 6}}
    assert list(held["shards"].values()) == [9, 4] * SHARDS
    assert {"vae_sha256", "scaling_factor", "resolution", "crop", "std"} <= held["made_of"].keys()
    name = next(iter(held["shards"]))
    with safe_open(out / f"{name}.safetensors", "pt") as latents:
        assert json.loads(latents.metadata()["fewstep"])["made_of"] == held["made_of"]
        assert latents.get_tensor("mean").shape == latents.get_tensor("std").shape == (9, 4, 8, 8)
        assert str(latents.get_tensor("mean").dtype) == "torch.float16"


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_same_bytes(undisturbed, tiny, shards, cache, tmp_path, kills):
    whole, rng = undisturbed, random.Random(kills)
    killed, left, out = 0, set(), tmp_path / "0"
    while killed < kills:
        warm = Warm(arguments(tiny, shards, out), env=cache)
        wanted = len(list(out.glob("*.safetensors"))) + rng.randrange(4)
        while warm.process.is_alive() and len(list(out.glob("*.safetensors"))) < wanted:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        killed += warm.process.is_alive()
        warm.process.kill()
        warm.process.join()
        left.add(len(list(out.glob("*.safetensors"))))
        if (out / "prepared.json").exists():
            found = content(out)
            found.pop(LOCK_FILE, None)  # of one that was killed before it could take its lock away
            assert found == content(whole)
            out = tmp_path / str(killed)
    assert len(left) > 2  # it was killed in the midst of it
    assert Warm(arguments(tiny, shards, out), env=cache).wait().returncode == 0
    assert content(out) == content(whole)


def test_by_four_processes_the_same_bytes(undisturbed, tiny, shards, cache, tmp_path):
    done = Warm(arguments(tiny, shards, tmp_path / "out", "--workers", 4), env=cache).wait()
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "out") == content(undisturbed)


def test_training_on_latents_is_training_on_the_pictures(undisturbed, tiny, shards):
    model = load_latent_model(tiny, pick_device("cpu"))
    settings = {"resolution": 16, "seed": 3}
    prepared = open_material(TrainingConfig(data=str(undisturbed), **settings), model, captions=2)
    assert prepared.count == 78
    latents, pictures = (
        found.latents() for found in (prepared, open_material(TrainingConfig(data=str(shards), **settings), model))
    )
    noise = torch.randn(78, *latents.shape_at(range(1)))
    one, other = (
        latents.batch(range(78), noise),
        pictures.batch(range(84), torch.randn(84, *latents.shape_at(range(1)))),
    )
    assert one.valid.all()
    assert (~other.valid).sum() == 6
    assert {each.reason for each in pictures.dropped()} == {"broken picture"}
    by_key = dict(zip(pictures.keys(range(84)), other.cond["text"], strict=True))
    for key, text in zip(latents.keys(range(78)), one.cond["text"], strict=True):
        torch.testing.assert_close(text, by_key[key], rtol=1e-4, atol=1e-5)
    assert sorted(latents.keys(range(78))) == sorted(latents.keys(range(78, 156)))
    none = latents.batch(range(4), torch.zeros(4, *latents.shape_at(range(1)))).z_0
    assert (none - one.z_0[:4]).abs().mean() > 0.01  # the deviation is drawn from


def test_what_does_not_agree_is_named(undisturbed, tiny, shards, cache, tmp_path, random_teacher):
    out = undisturbed
    done = Warm(arguments(tiny, shards, out, "--resolution", 32), env=cache).wait()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "was prepared with resolution 16, not 32; choose another --out" in done.stderr
    model = load_latent_model(tiny, pick_device("cpu"))
    with pytest.raises(UserError, match="prepared with resolution 16, this model and run have 32"):
        open_material(TrainingConfig(data=str(out), resolution=32), model)
    with pytest.raises(UserError, match="prepared with vae_sha256"):
        open_material(
            TrainingConfig(data=str(out), resolution=16), load_latent_model(random_teacher, pick_device("cpu"))
        )
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "00000-0000-x.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is not completely prepared"):
        open_material(TrainingConfig(data=str(tmp_path / "half"), resolution=16), model)


def test_from_shards_to_a_student_in_two_processes_with_a_kill(undisturbed, tiny, tmp_path):
    """Prepared, distilled by two processes, killed, gone on with: the weights of a run without the kill."""

    def settings(out):
        return [*map(str, (
            "distill", "scenes", "--teacher", tiny, "--data", undisturbed, "--resolution", 16, "--out", out,
            "--steps", 24, "--batch-size", 4, "--sample-every", 0, "--checkpoint-every", 3, "--log-every", 3,
            "--guidance-range", 2, 5, "--guidance-scale", 3,
        ))]  # fmt: skip

    whole = run_warm_together(settings(tmp_path / "whole"), 2)
    assert [done.returncode for done in whole] == [0, 0], whole
    assert [done.stderr.count("distil 24/24") for done in whole] == [1, 0]  # one process speaks
    cut = Warm((*settings(tmp_path / "cut"), "--processes", "2"))
    for _ in range(6000):
        if list((tmp_path / "cut").glob("checkpoints/step-???????")):
            break
        time.sleep(0.02)
    cut.process.kill()
    cut.wait()
    time.sleep(2)  # its processes leave with it
    stood = sorted(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir())
    assert "step-0000024" not in stood
    again = run_warm_together(settings(tmp_path / "cut"), 2)
    assert [done.returncode for done in again] == [0, 0], again
    assert "goes on after update" in again[0].stderr + again[0].stdout
    for file in ("model/unet/diffusion_pytorch_model.safetensors", "checkpoints/step-0000024/state.safetensors"):
        one, two = (load_file(tmp_path / run / file) for run in ("whole", "cut"))
        assert one.keys() == two.keys()
        assert all(one[name].equal(two[name]) for name in one), file


def test_a_process_that_comes_late_takes_what_the_first_has_written_for_its_own(undisturbed, tiny, tmp_path):
    """The second process looks at the folder of the run when the first has begun to write into it."""
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "import fewstep.runs.consistency as runs\n"
        "from fewstep.cli import main\n"
        "look = runs.refuse_others\n"
        "def come_late(out):\n"
        "    if os.environ.get('RANK') == '1':\n"
        "        written = Path(out, 'config.yaml')\n"
        "        while not written.exists():\n"
        "            time.sleep(0.01)\n"
        "        draft = written.rename(written.with_name('config.yaml.tmp-1'))\n"
        "        try:\n"
        "            look(out)\n"
        "        finally:\n"
        "            draft.rename(written)\n"
        "    else:\n"
        "        look(out)\n"
        "runs.refuse_others = come_late\n"
        "main(sys.argv[1:])\n"
    )
    (tmp_path / "fewstep_late.py").write_text(code)
    run = tmp_path / "run"
    done = launch("fewstep_late", tmp_path, "distill", "scenes", "--teacher", tiny, "--data", undisturbed,
                  "--resolution", 16, "--out", run, "--steps", 1, "--batch-size", 4, "--sample-every", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (run / "model").is_dir()


def launch(module, folder, *command):
    """Runs a command in two processes of a module of the folder that stands for fewstep's own."""
    launcher = (
        f"import sys, fewstep.parallel.processes as p\np.MODULE = '{module}'\nsys.exit(p.launch(2, sys.argv[1:]))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", launcher, *map(str, command)], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip


def test_the_error_of_the_process_that_failed_is_shown(undisturbed, tiny, tmp_path):
    """Only the second process cannot write its part of the work."""
    code = (
        "import os, sys\n"
        "from fewstep.cli import main\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import fewstep.train.loop as loop\n"
        "    def broken(*_):\n"
        "        raise loop.UserError('the second process has lost its mind; give it another')\n"
        "    loop.do_update = broken\n"
        "main(sys.argv[1:])\n"
    )
    (tmp_path / "fewstep_broken.py").write_text(code)
    command = (
        "distill", "scenes", "--teacher", tiny, "--data", undisturbed, "--resolution", 16, "--out", tmp_path / "run",
        "--steps", 4, "--batch-size", 4, "--sample-every", 0,
    )  # fmt: skip
    done = launch("fewstep_broken", tmp_path, *command)
    assert done.returncode == 2
    assert "process 1 of 2 failed:\nfewstep: error: the second process has lost its mind" in done.stderr
    assert "Traceback" not in done.stderr
