"""What would go on as something else is refused in one line."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.data.shards.prepared import PreparedShards
from fewstep.errors import UserError
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.parallel.world import World
from fewstep.recipes.pictures import TrainingConfig
from fewstep.runs.material import open_material
from fewstep.runs.unfinished import load_painter
from warm_command import Warm


def small(tiny, data, out, *more):
    return (
        "distill", "scenes", "--teacher", tiny, "--data", data, "--resolution", 16, "--out", out, "--steps", 3,
        "--batch-size", 4, "--sample-every", 0, "--guidance-range", 2, 5, "--guidance-scale", 3, *more,
    )  # fmt: skip


def refused(*arguments, **env):
    done = Warm(arguments, env=env).wait()
    said = [line for line in done.stderr.splitlines() if not line.startswith("encoding ")]
    assert (done.returncode, len(said)) == (2, 1), done.stderr
    return said[0]


def test_pictures_that_are_no_longer_those_of_the_run(tiny, photos, tmp_path):
    data, out = shutil.copytree(photos, tmp_path / "photos"), tmp_path / "run"
    assert Warm(small(tiny, data, out)).wait().returncode == 0
    shutil.copy(data / "000.png", data / "zzz.png")
    (data / "zzz.txt").write_text("one more")
    more = small(tiny, data, out, "--steps", 5, "--change", "steps")
    assert f"the pictures of {data} are not those that {out} began with" in refused(*more)
    assert Warm((*more, "data")).wait().returncode == 0


def test_a_base_that_is_no_longer_that_of_the_run(tiny, photos, tmp_path):
    base, out = shutil.copytree(tiny, tmp_path / "base"), tmp_path / "run"
    assert Warm(small(base, photos, out)).wait().returncode == 0
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_out.bias"] += 1e-4
    save_file(weights, file, {"format": "pt"})
    shutil.rmtree(out / "model")
    said = f"the weights of {base} are not those that {out} began with"
    with pytest.raises(UserError, match=re.escape(said)):
        load_painter(out, "cpu")
    more = small(base, photos, out, "--steps", 5, "--change", "steps")
    assert said in refused(*more)
    assert Warm((*more, "teacher")).wait().returncode == 0
    assert load_painter(out, "cpu").model.source == str(out / "model")


def test_fewer_updates_than_there_were(tiny, photos, tmp_path):
    assert Warm(small(tiny, photos, tmp_path)).wait().returncode == 0
    for name in ("steps", "updates"):
        said = refused(*small(tiny, photos, tmp_path, f"--{name}", 2, "--change", name))
        assert f"has 3 updates behind it and {name} is 2; give so many or more" in said


def test_what_runs_in_one_process(tmp_path):
    assert "demo runs in one process" in refused("demo", "--processes", 2, "--out", tmp_path / "demo")
    said = refused("train-teacher", "--out", tmp_path / "teacher", WORLD_SIZE="2", RANK="0")
    assert "train-teacher runs in one process; those that run in several are distill, finetune, train-lora" in said
    said = refused("train-teacher", "--out", tmp_path / "teacher", "--autoencoder.processes", 2)
    assert "autoencoder.processes is set" in said


def test_a_batch_that_cannot_be_shared(tiny, photos, tmp_path):
    wanted = "batch_size 4 is not a multiple of 3 processes; give one that is"
    assert wanted in refused(*small(tiny, photos, tmp_path / "run", "--processes", 3))
    with pytest.raises(UserError, match=wanted):  # as torchrun starts them
        World(rank=1, size=3).share(range(4))


def test_the_error_is_the_culprits_where_it_is_alone_before_training_begins(tiny, photos, tmp_path):
    """The first process alone looks at the folder; the other finds it gone, and may leave before it."""
    (tmp_path / "something").write_text("of mine")
    done = Warm(small(tiny, photos, tmp_path, "--processes", 2)).wait(200)
    assert done.returncode == 2
    assert f"{tmp_path} is not empty and holds no run of fewstep" in done.stderr
    assert "another process has gone" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def latents(tiny, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "of-photos"
    done = Warm(("prepare", "--model", tiny, "--data", photos, "--resolution", 16, "--out", out, "--workers", 1)).wait()
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"flip": True}, "flip"), ({"crop": "random"}, "crop"), ({"mix": ("scenes",)}, "mix"),
     ({"caption_fields": ("recaption",)}, "caption_fields")],
)  # fmt: skip
def test_what_was_settled_when_latents_were_prepared(latents, tiny, settings, name):
    with pytest.raises(UserError, match=f"holds latents, for which {name} was settled when they were prepared"):
        open_material(
            TrainingConfig(data=str(latents), resolution=16, **settings), load_latent_model(tiny, pick_device("cpu"))
        )


def test_latents_of_other_pictures(latents, tiny, photos, tmp_path):
    data = shutil.copytree(photos, tmp_path / "photos")
    os.remove(data / "004.png")
    settings = ("prepare", "--model", tiny, "--resolution", 16, "--out", latents, "--workers", 1)
    assert "was prepared with data" in refused(*settings, "--data", data)
    shutil.copytree(latents, tmp_path / "own")
    for change in (("--part", 7), ("--batch-size", 8), ("--no-std",), ("--crop", "random"), ("--seed", 3)):
        assert "was prepared with" in refused(*settings, "--data", photos, *change)


def test_latents_are_no_pictures(latents, tmp_path):
    said = refused("evaluate", "--data", latents, "--out", tmp_path / "out", "--extractor", "reader")
    assert "holds latents" in said or "readers read bundled worlds" in said


def test_a_manifest_that_names_what_no_disk_holds_is_refused(latents, tmp_path):
    folder = shutil.copytree(latents, tmp_path / "latents")
    held = json.loads((folder / "prepared.json").read_text())
    (folder / "prepared.json").write_text(json.dumps(held | {"shards": {"a" * 300: 4}}))
    with pytest.raises(UserError, match="it names files that no disk holds"):
        PreparedShards(folder)


def test_a_spoilt_shard_of_latents_is_named(latents, tiny, tmp_path):
    for spoil, said in (("safetensors", "is damaged"), ("parquet", "is not the table of the latents beside it")):
        folder = shutil.copytree(latents, tmp_path / spoil)
        (file,) = folder.glob(f"*-*-*.{spoil}")
        content = file.read_bytes()
        file.write_bytes(content[:40] + b"x" + content[41:])
        model = load_latent_model(tiny, pick_device("cpu"))
        material = open_material(TrainingConfig(data=str(folder), resolution=16), model)
        source = material.latents()
        with pytest.raises(UserError, match=said):
            source.batch(range(4), torch.zeros(4, *source.shape_at(range(1))))
