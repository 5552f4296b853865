"""What is loaded, painted, written and loaded again is the same at both ends of the versions that are allowed.

`make test-oldest` runs this file with the oldest versions, and the suite with those of constraints.txt.
"""

from __future__ import annotations

import json
import re
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, LCMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

import fewstep
from fewstep import assets
from fewstep.commands.distill import distill
from fewstep.data.worlds.scenes import Scenes
from fewstep.models import scenes_model
from fewstep.models.families import list_families
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.export import save_merged
from fewstep.models.lora.file import DIFFUSERS_FILE
from fewstep.models.parts import load_tokenizer
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes.distill import Distill
from miniatures import FAMILIES, save_miniature
from oldest import oldest
from single_files import save_single_file

CPU = torch.device("cpu")
PROMPT = "a red star left of a blue circle"
PAINTED = Path(__file__).with_name("painted.json")
"""The bundled model's picture as it was painted with the versions of constraints.txt, a mean for each 8×8 pixels."""


def tiles(image):
    return np.asarray(image, dtype=float).reshape(8, 8, 8, 8, 3).mean((1, 3)).round(1)


def test_the_bundled_model_paints_what_it_paints():
    (image,) = fewstep.load(device="cpu")(PROMPT, steps=4, seed=7)
    np.testing.assert_allclose(tiles(image), np.asarray(json.loads(PAINTED.read_text())), atol=2)


def test_diffusers_paints_the_bundled_teacher():
    pipe = DiffusionPipeline.from_pretrained(assets.scenes_teacher())
    mine = load_latent_model("scenes", CPU).conditioner.encode([PROMPT])["text"]
    tokens = pipe.tokenizer([PROMPT], padding="max_length", truncation=True, return_tensors="pt").input_ids
    torch.testing.assert_close(pipe.text_encoder(tokens)[0], mine)


@pytest.fixture(scope="module", params=FAMILIES)
def miniature(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    return request.param, save_miniature(request.param, tokenizer, folder / request.param)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (16, 16), colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {colour} square")
    return folder


def check_painted_alike(mine, theirs, scale):
    assert np.ptp(mine) > 30  # a blank picture is like any other
    theirs.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": scale, "height": 16, "width": 16}
    (one,) = theirs(PROMPT, **settings, generator=torch.Generator().manual_seed(5)).images
    assert np.abs(np.asarray(mine, dtype=int) - np.asarray(one, dtype=int)).max() <= 2


def check_spelling(folder):
    for encoder in folder.glob("text_encoder*"):
        names = load_file(encoder / "model.safetensors")
        assert all(name.startswith(("text_model.", "text_projection.")) for name in names)
    for tokenizer in folder.glob("tokenizer*"):
        assert {"vocab.json", "merges.txt"} <= {file.name for file in tokenizer.iterdir()}


@pytest.mark.parametrize(
    ("miniature", "rank"), [*((family, 0) for family in FAMILIES), ("sd15", 2)], indirect=["miniature"]
)
def test_what_is_distilled_is_loaded_again_and_painted_alike_by_diffusers(miniature, rank, pictures, tmp_path):
    _, teacher = miniature
    lora = {"lora_rank": 2, "lora_alpha": 2.0, "guidance_range": (8.5, 8.5), "guidance_scale": 8.5} if rank else {}
    distill(
        Distill(
            teacher=str(teacher), data=str(pictures), out=tmp_path, steps=1, batch_size=2, sample_every=0, device="cpu",
            **lora,
        )
    )  # fmt: skip
    (mine,) = load_pipeline(tmp_path / "model", "cpu")(PROMPT, steps=2, seed=5, guidance_scale=8.5)
    if rank:
        theirs = DiffusionPipeline.from_pretrained(teacher)
        theirs.scheduler = LCMScheduler.from_config(theirs.scheduler.config)
        theirs.load_lora_weights(tmp_path / "model", weight_name=DIFFUSERS_FILE)
    else:
        check_spelling(tmp_path / "model")
        theirs = DiffusionPipeline.from_pretrained(tmp_path / "model")
    check_painted_alike(mine, theirs, 1.0 if rank else 8.5)


def test_a_single_file_written_as_a_folder_is_the_same_model(miniature, tmp_path):
    family, folder = miniature
    file = save_single_file(family, folder, tmp_path / "model.safetensors")
    model = load_latent_model(file, CPU, str(folder))
    save_merged(tmp_path / "out", model, {})
    check_spelling(tmp_path / "out")
    again = load_latent_model(tmp_path / "out", CPU)
    for name, value in model.conditioner.encode([PROMPT]).items():
        torch.testing.assert_close(again.conditioner.encode([PROMPT])[name], value)
    tokens = CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")(PROMPT).input_ids
    assert tokens == CLIPTokenizer.from_pretrained(folder / "tokenizer")(PROMPT).input_ids


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoders_of_both_spellings_are_read(prefix, teacher_copy):
    file = teacher_copy / "text_encoder" / "model.safetensors"
    wanted = load_latent_model(teacher_copy, CPU).conditioner.encode([PROMPT])["text"]
    tensors = {f"{prefix}{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    # Numbers 0, 1, 2 …, which older versions saved.
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(32)[None]
    save_file(tensors, file, {"format": "pt"})
    assert torch.equal(load_latent_model(teacher_copy, CPU).conditioner.encode([PROMPT])["text"], wanted)


def test_a_tokenizer_that_transformers_5_wrote_is_read(tmp_path):
    whole = assets.scenes_teacher() / "tokenizer"
    alone = shutil.copytree(whole, tmp_path / "tokenizer", ignore=shutil.ignore_patterns("vocab.json", "merges.txt"))
    one, other = (load_tokenizer(CLIPTokenizer, folder)(PROMPT).input_ids for folder in (alone, whole))
    assert one == other


def test_versions_are_within_the_bounds():
    def key(version):
        return [int(part) for part in re.findall(r"\d+", version)[:3]]

    for name, lowest in oldest().items():
        assert key(metadata.version(name)) >= key(lowest), name


def test_every_family_is_known_to_these_versions():
    """Their classes of diffusers and transformers are there, the newest family's too."""
    for family in list_families():
        assert next(family.shaped_network().backbone.parameters()).is_meta
