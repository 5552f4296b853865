"""Training on pictures of several aspects, by the command line: shapes, sizes and crops; prepared, killed, resumed."""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fewstep.commands import distill as distill_command
from fewstep.data.shards.bucketed import BucketedShards
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.models import scenes_model
from fewstep.models.encoding import FreshLatents, KeptLatents
from fewstep.models.families.unet import UNetNetwork
from fewstep.models.loading import load_latent_model
from fewstep.recipes.distill import Distill
from fewstep.recipes.named import find_recipe
from fewstep.recipes.prepare import Prepare
from fewstep.runs.material import open_material
from miniatures import save_miniature
from ranks import run_ranks
from warm_command import Warm

BATCH, STEPS = 2, 9
WIDE, SQUARE = [f"wide-{i}.png" for i in range(5)], [f"square-{i}.png" for i in range(4)]
SIZES = dict.fromkeys(WIDE, (33, 20)) | dict.fromkeys(SQUARE, (24, 22)) | {"turned.jpg": (20, 33)}
"""Width and height of the files; one lies, and is upright only once its EXIF is obeyed."""
TOLD = {
    "wide": (20, 33, 0, 0, 12, 20),  # resized to 20 × 12, which it is already in aspect
    "square": (22, 24, 0, 0, 16, 16),  # resized to 17 × 16
    "turned": (20, 33, 0, 0, 12, 20),
}  # fmt: skip


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """A miniature of Stable Diffusion XL, whose pictures have 16 pixels a side."""
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    return save_miniature("sdxl", tokenizer, tmp_path_factory.mktemp("models") / "xl")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        exif = Image.Exif()
        if name == "turned.jpg":
            exif[0x0112] = 6
        noise = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name, **({"exif": exif} if len(exif) else {}))
        (folder / name).with_suffix(".txt").write_text(f"a star in {name.partition('.')[0]}")
    return folder


def arguments(xl, data, out, *more):
    return (
        "distill", "scenes", "--teacher", xl, "--data", data, "--buckets", "on", "--out", out, "--steps", STEPS,
        "--batch-size", BATCH, "--accumulation", 2, "--lr", 1e-3, "--checkpoint-every", 2, "--log-every", 1,
        "--sample-every", 0, "--record-samples", "--guidance-range", 2, 5, "--guidance-scale", 3,
        "--resolution", 16, "--ema-decay", 0.9, "--lr-decay", "constant", *more,
    )  # fmt: skip


def settings(xl, data, out="", **changes):
    given = {"teacher": str(xl), "data": str(data), "out": out, "buckets": "on", "batch_size": BATCH, "device": "cpu",
             "resolution": 16, **changes}  # fmt: skip
    return Distill(**given)


def bucket_of(key):
    return "square" if key.startswith("square") else "wide"


def samples(run):
    return [json.loads(line)["keys"] for line in (run / "samples.jsonl").open()]


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


def state(run):
    return load_file(run / "checkpoints" / f"step-{STEPS:07d}" / "state.safetensors")


@pytest.fixture(scope="module")
def undisturbed(xl, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = Warm(arguments(xl, pictures, out)).wait()
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_every_update_is_of_one_bucket_and_every_picture_comes_in_its_turn(undisturbed):
    run, said = undisturbed
    assert "buckets, width × height: 20x12: 6, 16x16: 4\n" in said
    assert "enlarged" not in said
    updates = samples(run)
    assert len(updates) == STEPS
    assert all(len({bucket_of(key) for key in update}) == 1 for update in updates)
    first = [key for update in updates[:5] for key in update]  # an epoch: three of one, two of the other
    assert sorted(first) == sorted(SIZES)
    assert len({bucket_of(update[0]) for update in updates[:5]}) == 2


def test_the_network_is_given_each_shape_and_told_its_sizes_and_crop(xl, pictures, tmp_path, monkeypatch):
    seen, forward = set(), UNetNetwork.forward

    def note(self, z_t, t, cond, omega):
        if "sizes" in cond and z_t.shape[0] == BATCH:  # ∅ is told none
            seen.update((tuple(z_t.shape[-2:]), tuple(int(n) for n in row)) for row in cond["sizes"])
        return forward(self, z_t, t, cond, omega)

    monkeypatch.setattr(UNetNetwork, "forward", note)
    config = settings(xl, pictures, tmp_path / "run", steps=5, sample_every=0, ema_decay=0.5)
    distill_command.distill(config)
    assert {told for _, told in seen} == set(TOLD.values())
    assert all(shape == (told[4] // 2, told[5] // 2) for shape, told in seen)
    assert (config.out / "model" / "unet").is_dir()


def test_what_is_kept_encoded_is_what_is_encoded_anew(xl, pictures):
    model = load_latent_model(xl, torch.device("cpu"))
    kept, fresh = (
        open_material(settings(xl, pictures, keep_gib=gib, read_ahead=ahead), model).latents()
        for gib, ahead in ((4.0, 4), (0.0, 2))
    )
    assert isinstance(kept, KeptLatents)
    assert isinstance(fresh, FreshLatents)
    shapes = set()
    for start in range(0, 20, BATCH):
        counters = range(start, start + BATCH)
        noise = torch.randn(BATCH, *kept.shape_at(counters))
        one, other = kept.batch(counters, noise), fresh.batch(counters, noise)
        shapes.add(tuple(one.z_0.shape[1:]))
        torch.testing.assert_close(one.z_0, other.z_0, rtol=1e-3, atol=2e-4)  # batches of other sizes round apart
        assert torch.equal(one.cond["sizes"], other.cond["sizes"])
        assert kept.keys(counters) == fresh.keys(counters)
        for key, sizes in zip(kept.keys(counters), one.cond["sizes"].tolist(), strict=True):
            assert tuple(sizes) == TOLD[key.partition(".")[0].partition("-")[0]]
    assert shapes == {(4, 6, 10), (4, 8, 8)}


def test_random_crops_lie_where_they_are_said_to(xl, pictures):
    model = load_latent_model(xl, torch.device("cpu"))
    found = open_material(settings(xl, pictures, crop="random", flip=True), model).latents()
    assert isinstance(found, FreshLatents)
    lefts = set()
    for start in range(0, 60, BATCH):
        counters = range(start, start + BATCH)
        cond = found.batch(counters, torch.zeros(BATCH, *found.shape_at(counters))).cond
        lefts |= {tuple(sizes[2:4]) for sizes in cond["sizes"].tolist() if sizes[4:] == [16, 16]}
    assert lefts == {(0, 0), (0, 1)}


def test_a_picture_that_breaks_has_the_shape_of_its_bucket(xl, pictures, tmp_path):
    for file in pictures.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = load_latent_model(xl, torch.device("cpu"))
    found = open_material(settings(xl, tmp_path, keep_gib=0.0, read_ahead=0), model).latents()
    for name in SIZES:
        (tmp_path / name).write_bytes(b"no picture")
    shapes = set()
    for start in range(0, 10, BATCH):
        counters = range(start, start + BATCH)
        batch = found.batch(counters, torch.zeros(BATCH, *found.shape_at(counters)))
        assert not batch.valid.any()
        shapes.add(tuple(batch.z_0.shape[1:]))
    assert shapes == {(4, 6, 10), (4, 8, 8)}


def test_killed_and_resumed_it_is_the_same(undisturbed, xl, pictures, tmp_path):
    out = tmp_path / "run"
    warm = Warm(arguments(xl, pictures, out))
    while warm.process.is_alive() and not (out / "checkpoints" / "step-0000004").exists():
        time.sleep(0.002)
    warm.process.kill()
    warm.process.join()
    done = Warm(arguments(xl, pictures, out)).wait()
    assert done.returncode == 0, done.stderr
    whole, again = state(undisturbed[0]), state(out)
    assert whole.keys() == again.keys()
    assert all(whole[name].equal(again[name]) for name in whole)
    assert samples(out) == samples(undisturbed[0])


def go_on(config, steps):
    distill_command.distill(dataclasses.replace(config, steps=steps, change=("steps",)))


def test_in_changing_worlds_the_samples_are_the_same(undisturbed, xl, pictures, tmp_path):
    config = dataclasses.replace(
        find_recipe("scenes"), teacher=str(xl), data=str(pictures), out=tmp_path / "run", buckets="on", resolution=16,
        batch_size=BATCH, accumulation=2, lr=1e-3, log_every=1, sample_every=0, record_samples=True,
        guidance_range=(2.0, 5.0), guidance_scale=3.0, ema_decay=0.9, lr_decay="constant", device="cpu",
    )  # fmt: skip
    for size, steps in ((1, 1), (2, 4)):
        run_ranks(size, go_on, config, steps)
    assert samples(config.out) == samples(undisturbed[0])[:4]
    assert losses(config.out) == pytest.approx(losses(undisturbed[0])[:4], rel=1e-3)


@pytest.fixture(scope="module")
def prepared(xl, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "whole"
    done = Warm(preparation(xl, pictures, out)).wait()
    assert done.returncode == 0, done.stderr
    assert "buckets, width × height: 20x12: 6, 16x16: 4\n" in done.stdout
    return out


def preparation(xl, data, out, *more):
    return (
        "prepare", "--model", xl, "--data", data, "--buckets", "on", "--out", out, "--batch-size", 4, "--resolution",
        16, "--workers", 1, *more,
    )  # fmt: skip


def test_latents_that_were_prepared_are_those_of_the_pictures_and_in_their_order(prepared, xl, pictures):
    model = load_latent_model(xl, torch.device("cpu"))
    stored, fresh = (open_material(settings(xl, data), model).latents() for data in (prepared, pictures))
    for start in range(0, 30, BATCH):
        counters = range(start, start + BATCH)
        noise = torch.randn(BATCH, *fresh.shape_at(counters))
        assert stored.shape_at(counters) == fresh.shape_at(counters)
        assert stored.keys(counters) == fresh.keys(counters)
        one, other = stored.batch(counters, noise), fresh.batch(counters, noise)
        torch.testing.assert_close(one.z_0, other.z_0, rtol=2e-3, atol=2e-3)  # stored in fp16
        assert torch.equal(one.cond["sizes"], other.cond["sizes"])
        torch.testing.assert_close(one.cond["text"], other.cond["text"], rtol=1e-4, atol=1e-5)


def test_training_on_what_was_prepared_is_training_on_the_pictures(prepared, undisturbed, xl, tmp_path):
    done = Warm(arguments(xl, prepared, tmp_path / "run")).wait()
    assert done.returncode == 0, done.stderr
    assert "buckets, width × height: 20x12: 6, 16x16: 4\n" in done.stdout
    assert samples(tmp_path / "run") == samples(undisturbed[0])
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed[0]), rel=0.02)


def test_in_parts_the_same_pictures(prepared, xl, pictures, tmp_path):
    done = Warm(preparation(xl, pictures, tmp_path / "out", "--part", 3)).wait()
    assert done.returncode == 0, done.stderr
    one, other = BucketedShards(prepared), BucketedShards(tmp_path / "out")
    assert one.count_sides() == other.count_sides() == {(12, 20): 6, (16, 16): 4}
    assert len(other.names) == 4
    held = [{}, {}]
    for shards, found in zip((one, other), held, strict=True):
        for index, bucket in enumerate(shards.bucket_of):
            place = shards.locate(index)
            row = shards.read_row(*place)
            assert row.sizes[4:] == shards.buckets[bucket]
            found[row.key] = shards.read_latent(*place, "mean")
            assert tuple(found[row.key].shape) == (4, row.sizes[4] // 2, row.sizes[5] // 2)
    assert held[0].keys() == held[1].keys() == SIZES.keys()
    for key, value in held[0].items():
        torch.testing.assert_close(value, held[1][key], rtol=1e-2, atol=1e-2)


def test_what_does_not_go_together_is_refused_in_words(prepared, xl, pictures, tmp_path):
    model = load_latent_model(xl, torch.device("cpu"))
    with pytest.raises(UserError, match="was prepared with buckets; give --buckets on"):
        open_material(settings(xl, prepared, buckets="off"), model)
    with pytest.raises(UserError, match=r"was prepared with resolution 16, this model and run have 32"):
        open_material(settings(xl, prepared, resolution=32), model)
    with pytest.raises(UserError, match="walkers have one shape, and buckets have several; give --buckets off"):
        settings(xl, pictures, states="walkers")
    with pytest.raises(UserError, match=r"buckets is on, which is of pictures; trajectories have none"):
        Prepare(trajectories=4, buckets="on")
    plain = tmp_path / "plain"
    assert (
        Warm(("prepare", "--model", xl, "--data", pictures, "--out", plain, "--resolution", 16, "--workers", 1))
        .wait()
        .returncode
        == 0
    )
    with pytest.raises(UserError, match="was prepared without buckets; give --buckets off"):
        open_material(settings(xl, plain), model)
    manifest = json.loads((prepared / "prepared.json").read_text())
    assert "buckets" not in json.loads((plain / "prepared.json").read_text())
    name = next(iter(manifest["shards"]))
    spoilt = tmp_path / "spoilt"
    for counts in ({"16x16": 5, "20x12": 6}, {"16x16": "4", "20x12": 6}, {"16x16": -1}, 7):
        spoilt.mkdir(exist_ok=True)
        (spoilt / "prepared.json").write_text(json.dumps(manifest | {"buckets": {name: counts}}))
        with pytest.raises(UserError, match="does not say what its buckets hold"):
            BucketedShards(spoilt)


def test_a_run_tried_out_counts_all_pictures(xl, pictures, tmp_path, capsys):
    distill_command.distill(settings(xl, pictures, tmp_path / "run", dry_run=True))
    said = capsys.readouterr().out
    assert "buckets, width × height: 20x12: 6, 16x16: 4\n" in said
    assert "updates of 2" in said
