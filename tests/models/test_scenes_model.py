"""The bundled teacher and student: any prompt tokenises, and diffusers' own pipelines run them."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTokenizer

import fewstep
from fewstep import assets
from fewstep.data.pictures import to_images, to_pixels
from fewstep.data.worlds.scenes import Scenes
from fewstep.diffusion.schedule import sampling_times
from fewstep.evaluate.baselines import sample_teacher
from fewstep.evaluate.reader import load_reader, read
from fewstep.models import scenes_model
from fewstep.models.loading import load_latent_model
from fewstep.models.network import hash_weights


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")


def test_words_of_the_world_are_single_tokens(tokenizer):
    for i in range(200):
        caption = Scenes(seed=5, split="all").prompt(i)[0]
        assert len(tokenizer(caption).input_ids) == len(caption.split()) + 2 <= tokenizer.model_max_length


@pytest.mark.parametrize("prompt", ["", "Ünïcode 漢字 🙂 zebra", "\x00\x7f ~", "https://example.org/?q=1&x=[2]"])
def test_any_prompt_tokenises(tokenizer, prompt):
    ids = tokenizer(prompt).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in ids[1:-1]


def test_all_bytes_are_in_the_vocabulary(tokenizer):
    singles = [word for word in tokenizer.get_vocab() if len(word) == 1]
    ends = [word for word in tokenizer.get_vocab() if len(word) == 5 and word.endswith("</w>")]
    assert len(singles) == len(ends) == 256


def test_ids_stand_in_the_text_configuration(tokenizer):
    from transformers import CLIPTextConfig

    config = CLIPTextConfig.from_pretrained(assets.scenes_teacher() / "text_encoder")
    assert config.bos_token_id == tokenizer.bos_token_id
    assert config.eos_token_id == config.pad_token_id == tokenizer.eos_token_id


def test_stable_diffusion_pipeline_runs_it_unchanged_and_paints_what_the_baseline_paints():
    pipe = StableDiffusionPipeline.from_pretrained(assets.scenes_teacher())
    assert isinstance(pipe.scheduler, DDIMScheduler)
    pipe.set_progress_bar_config(disable=True)
    prompts = [Scenes(seed=6, split="seen").prompt(i)[0] for i in range(4)]
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    theirs = pipe(prompts, num_inference_steps=20, guidance_scale=3.0, generator=generators).images
    teacher = load_latent_model(assets.scenes_teacher(), torch.device("cpu"))
    times = sampling_times(teacher.schedule, 20, "trailing")
    z_0 = sample_teacher(teacher, "ddim", times, teacher.conditioner.encode(prompts), range(4), omega=2.0)
    for one, other in zip(theirs, to_images(teacher.codec.decode(z_0)), strict=True):
        assert one.size == (64, 64)
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other)).max() <= 2
    assert max(np.asarray(one).std() for one in theirs) > 10


def test_everything_bundled_is_small():
    folder = assets.scenes_teacher().parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 23 * 2**20
    assert sum(path.stat().st_size for path in assets.scenes_lcm().rglob("*") if path.is_file()) < 12_000_000
    assert not list(folder.rglob("*.bin"))


def test_the_bundled_schedule_is_the_recipes():
    """In files of other versions of diffusers keys may be missing or more; those that both have are the same."""
    bundled = DDIMScheduler.from_pretrained(assets.scenes_teacher() / "scheduler").config
    recipe = scenes_model.build_scheduler().config
    shared = {name for name in bundled.keys() & recipe.keys() if not name.startswith("_")}
    assert {name: bundled[name] for name in shared} == {name: recipe[name] for name in shared}
    assert bundled["rescale_betas_zero_snr"]


def test_the_bundled_student_was_made_from_the_bundled_teacher_and_obeys():
    pipe, teacher = fewstep.load(), load_latent_model(assets.SCENES, torch.device("cpu"))
    details = json.loads((assets.scenes_lcm() / "fewstep.json").read_text())
    assert pipe.model.card.to_json() == details
    assert details["teacher_sha256"] == hash_weights(teacher.network.backbone)
    assert pipe.name == assets.SCENES_LCM
    assert pipe.model.schedule.alphas.equal(teacher.schedule.alphas)
    pairs = [Scenes(seed=6, split="seen").prompt(i) for i in range(24)]
    reader = load_reader(assets.SCENES_READER)
    for steps in (1, 2, 4):
        found, _ = read(reader, to_pixels(pipe([text for text, _ in pairs], steps=steps)))
        assert sum(s is not None and s.agrees_with(p) for s, (_, p) in zip(found, pairs, strict=True)) >= 20


def test_diffusers_runs_the_bundled_student_on_the_bundled_teachers_parts():
    unet = UNet2DConditionModel.from_pretrained(assets.scenes_lcm() / "unet")
    scheduler = LCMScheduler.from_pretrained(assets.scenes_lcm() / "scheduler")
    parts = StableDiffusionPipeline.from_pretrained(assets.scenes_teacher()).components
    parts |= {"unet": unet, "scheduler": scheduler}
    for unused in ("safety_checker", "feature_extractor", "image_encoder"):
        parts.pop(unused)
    theirs = LatentConsistencyModelPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    theirs.set_progress_bar_config(disable=True)
    one = theirs("a red star", num_inference_steps=4, guidance_scale=5.0, generator=torch.Generator().manual_seed(7))
    (other,) = fewstep.load()("a red star", steps=4, seed=7, guidance_scale=5.0)
    image = one.images[0]
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(other)).max() <= 2
