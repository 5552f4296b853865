"""What a training says of pictures that the model's autoencoder cannot hold, and of the words that it teaches."""

import dataclasses
import json
import logging

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import fewstep
from fewstep import assets
from fewstep.data.worlds.scenes import Scenes
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.source import parse_lora
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.models.vocabulary import EXAMPLES, WORDS, read_taught
from fewstep.runs.material import Material
from fewstep.runs.own_pictures import MOST_TIMES, find_taught, pass_through, warn_of_autoencoder
from fewstep.runs.unfinished import load_painter

CAPTIONS = ("a temple by a lake", "my dahlia, don't pick it")
SMALL = {"steps": 1, "batch_size": 2, "checkpoint_every": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """China and a flower, three pieces of each."""
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(6):
        whole = Image.fromarray(load_sample_images().images[i % 2])
        whole.crop((60 * i, 20 * i, 60 * i + 300, 20 * i + 300)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(CAPTIONS[i % 2])
    return folder


@pytest.fixture(scope="module")
def bundled():
    return load_latent_model(assets.SCENES, torch.device("cpu"))


def open_material(pictures):
    return Material(lambda: None, len(pictures), 64, [], {}, "", lambda most: pictures[:most], lambda _: CAPTIONS)


def said(caplog):
    return [each for each in caplog.messages if "autoencoder" in each]


def test_the_bound_lies_between_scenes_and_photographs(bundled, photographs):
    """Of each picture alone, though what is asked is the mean of several."""
    usual, _ = pass_through(bundled, [Scenes()[i].image for i in range(8)])
    others = [pass_through(bundled, [Scenes(seed=5)[i].image])[0] / usual for i in range(16)]
    photos = [Image.open(file).resize((64, 64)) for file in sorted(photographs.glob("*.png"))]
    own = [pass_through(bundled, [photo])[0] / usual for photo in photos]
    assert max(others) < 0.7 * MOST_TIMES
    assert min(own) > 1.5 * MOST_TIMES


def test_an_autoencoder_that_holds_them_is_not_spoken_of(bundled, tmp_path, caplog):
    for look in ("plain", "leaning"):
        scenes = [Scenes(seed=3, look=look)[i].image for i in range(8)]
        assert not warn_of_autoencoder(bundled, open_material(scenes), tmp_path)
    assert caplog.messages == []
    assert not list(tmp_path.iterdir())


def test_a_model_that_reads_any_word_is_never_judged(photographs, tmp_path, caplog):
    """It was made for pictures of all kinds, whatever its autoencoder makes of these."""
    model = load_latent_model(assets.SCENES, torch.device("cpu"))
    photos = [Image.open(file).resize((64, 64)) for file in sorted(photographs.glob("*.png"))]
    assert warn_of_autoencoder(model, open_material(photos), None)
    assert find_taught(model, open_material(photos)) == ("by", "dahlia", "don't", "it", "lake", "my", "pick", "temple")
    for name in (WORDS, EXAMPLES):
        for reader in model.conditioner.readers:
            del reader.tokenizer.init_kwargs[name]
    caplog.clear()
    assert not warn_of_autoencoder(model, open_material(photos), tmp_path)
    assert find_taught(model, open_material(photos)) is None
    assert not said(caplog)


def test_finetune_says_it_shows_it_and_teaches_the_words(photographs, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    run = fewstep.finetune(fewstep.configure("finetune", data=photographs, out=tmp_path / "run", **SMALL))
    first, second = (each for each in caplog.messages if "autoencoder" in each)
    assert first.startswith(
        "warning: the autoencoder of scenes-lcm cannot hold these pictures: what comes out of it is "
    )
    assert "--model" in second
    with Image.open(run.folder / "autoencoder.png") as picture:
        assert picture.width > 6 * 96
    pipeline = load_pipeline(run.model, "cpu")
    assert pipeline.vocabulary.find_unknown(["a Dahlia on a lake", "don't pick a zebra"]) == ["zebra"]
    (run.model).rename(tmp_path / "set-aside")  # as of a run that has not ended
    unfinished = load_painter(run.folder, "cpu", [])
    assert unfinished.vocabulary.find_unknown(["a dahlia or a zebra"]) == ["or", "zebra"]
    again = dataclasses.replace(run.config, model=str(tmp_path / "set-aside"), data="scenes", pictures=8,
                                out=tmp_path / "again")  # fmt: skip
    kept = fewstep.finetune(again)
    assert "dahlia" in json.loads((kept.model / "fewstep.json").read_text())["learnt_words"]


def test_train_lora_teaches_them_beside_any_model(photographs, tmp_path, caplog):
    caplog.set_level(logging.INFO, "fewstep")
    run = fewstep.train_lora(fewstep.configure("train-lora", data=photographs, out=tmp_path / "run", **SMALL))
    assert len(said(caplog)) == 2
    pipeline = load_pipeline(assets.SCENES_LCM, "cpu", [parse_lora(str(run.model))])
    assert pipeline.vocabulary.find_unknown(["a dahlia", "a zebra"]) == ["zebra"]
    assert not [each for each in caplog.messages if "other weights" in each]  # made for what scenes-lcm was made from


@pytest.mark.parametrize("text", [None, "", "{", '"words"', "[1]", '["\\u001b[2J"]', '["' + "x" * 300 + '"]'])
def test_a_header_that_lists_no_words_teaches_none(text):
    assert read_taught(text) == []
