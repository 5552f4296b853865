"""Pictures are encoded once: for all processes, and for all starts of a run."""

import dataclasses
import itertools
import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewstep.commands.distill import distill
from fewstep.data.worlds.scenes import Scenes
from fewstep.models import encoded, scenes_model
from fewstep.models.codec import Codec
from fewstep.models.loading import load_latent_model
from fewstep.parallel.world import current_world
from fewstep.recipes.distill import Distill
from fewstep.recipes.pictures import TrainingConfig
from fewstep.runs.material import ENCODED, open_material
from fewstep.runs.picture_material import describe_pictures
from fewstep.train.ledger import Ledger
from miniatures import save_miniature
from ranks import run_ranks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    return save_miniature("sdxl", tokenizer, tmp_path_factory.mktemp("models") / "sdxl")


def latents(tiny, run, **settings):
    model = load_latent_model(tiny, CPU)
    return open_material(TrainingConfig(pictures=10, resolution=64, **settings), model, run=run).latents()


def batch(source, counters=range(3, 9)):
    noise = torch.ones(len(counters), *source.shape_at(range(1)))
    given = source.batch(counters, noise)
    return [given.z_0, given.valid, *(given.cond[name] for name in sorted(given.cond))]


@pytest.fixture
def encodings(monkeypatch):
    """How many times pictures were given to the autoencoder."""
    calls, encode = [], Codec.encode
    monkeypatch.setattr(Codec, "encode", lambda self, pixels: (calls.append(len(pixels)), encode(self, pixels))[1])
    return calls


def test_a_second_start_reads_what_the_first_encoded(tiny, tmp_path, encodings):
    first = batch(latents(tiny, tmp_path))
    assert sum(encodings) == 10
    second = batch(latents(tiny, tmp_path))
    assert sum(encodings) == 10
    plain = batch(latents(tiny, None))
    assert sum(encodings) == 20
    for one, other, third in zip(first, second, plain, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, third)


@pytest.mark.parametrize("what", ["tensors", "json", "missing", "pictures", "model"])
def test_what_is_spoilt_or_of_something_else_is_encoded_again(what, tiny, tmp_path, encodings):
    batch(latents(tiny, tmp_path))
    tensors, rest = (tmp_path / ENCODED / name for name in ("encoded.safetensors", "encoded.json"))
    settings, model = {}, tiny
    if what == "tensors":
        content = tensors.read_bytes()
        tensors.write_bytes(content[:-8] + b"spoilt!!")
    elif what == "json":
        rest.write_text(rest.read_text()[:-30])
    elif what == "missing":
        tensors.unlink()
    elif what == "pictures":
        settings["mix"] = ("scenes-leaning::1",)
    else:
        model = save_miniature("sd15", load_latent_model(tiny, CPU).conditioner.first.tokenizer, tmp_path / "other")
    before = sum(encodings)
    source = latents(model, tmp_path, **settings)
    assert sum(encodings) > before
    for one, other in zip(batch(source), batch(latents(model, None, **settings)), strict=True):
        assert torch.equal(one, other)


def test_what_a_source_has_become_is_noticed(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
            (tmp_path / name / f"{i}.txt").write_text("a star")
    base = TrainingConfig(data=str(tmp_path / "one"))
    seen = [describe_pictures(base)]
    assert describe_pictures(base) == seen[0]
    for change in (
        {"data": str(tmp_path / "other")}, {"caption_lines": "first"}, {"mix": ("scenes::1",)}, {"seed": 5},
        {"data": "scenes"}, {"data": "scenes-leaning"}, {"data": str(tmp_path / "one" / "0.png")},
    ):  # fmt: skip
        seen.append(describe_pictures(dataclasses.replace(base, **change)))
    (tmp_path / "one" / "1.txt").write_text("a heart, and more")
    seen.append(describe_pictures(base))
    Image.new("RGB", (16, 16), "white").save(tmp_path / "one" / "2.png")
    seen.append(describe_pictures(base))
    assert all(one != other for one, other in itertools.combinations(seen, 2))


def test_where_it_cannot_be_kept_a_run_goes_on(tiny, tmp_path, caplog):
    (tmp_path / ENCODED).write_text("a file in the way")
    with caplog.at_level(logging.WARNING, "fewstep"):
        source = latents(tiny, tmp_path)
    assert "encoded pictures are not kept for the next start" in caplog.text
    assert batch(source)


def test_a_run_that_is_cut_encodes_nothing_again_and_leaves_nothing_behind(tiny, tmp_path, monkeypatch, encodings):
    config = Distill(
        teacher=str(tiny), data="scenes", pictures=10, resolution=64, steps=4, batch_size=2, checkpoint_every=2,
        sample_every=0, record_samples=True, out=tmp_path / "run", device="cpu", skip=20,
    )  # fmt: skip

    def cut(self, step, counters, keys):
        if step == 3:
            raise KeyboardInterrupt
        return record(self, step, counters, keys)

    with monkeypatch.context() as patched:
        record = Ledger.record_samples
        patched.setattr(Ledger, "record_samples", cut)
        with pytest.raises(KeyboardInterrupt):
            distill(config)
    assert (config.out / ENCODED / "encoded.json").is_file()
    assert sum(encodings) == 10
    distill(config)
    assert sum(encodings) == 10
    assert (config.out / "model").is_dir()
    assert not (config.out / ENCODED).exists()


def test_one_process_encodes_for_all(tiny, tmp_path):
    run_ranks(2, _open, str(tiny), str(tmp_path))
    one, other = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert (one["encoded"], other["encoded"]) == (10, 0)
    assert one["sums"] == other["sums"]


def _open(tiny, folder):
    calls, encode = [], encoded.encode_pictures
    encoded.encode_pictures = lambda model, reading: (calls.append(len(reading)), encode(model, reading))[1]
    sums = [float(value.double().sum()) for value in batch(latents(Path(tiny), Path(folder)))]
    Path(folder, f"rank-{current_world().rank}.json").write_text(json.dumps({"encoded": sum(calls), "sums": sums}))
