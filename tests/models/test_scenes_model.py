"""The bundled teacher: any prompt tokenises, and diffusers' own pipeline runs it."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from fewstep import assets
from fewstep.data.pictures import to_images
from fewstep.data.scenes import Scenes
from fewstep.diffusion.sampling import sampling_times
from fewstep.evaluate.baselines import teacher_latents
from fewstep.models import scenes_model
from fewstep.models.latent_model import load_latent_model


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
    times = sampling_times(teacher.schedule.num_steps, 20, "trailing")
    z_0 = teacher_latents(teacher, "ddim", times, teacher.encode_text(prompts), range(4), omega=2.0)
    for one, other in zip(theirs, to_images(teacher.decode(z_0)), strict=True):
        assert one.size == (64, 64)
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other)).max() <= 2
    assert max(np.asarray(one).std() for one in theirs) > 10


def test_everything_bundled_is_small():
    folder = assets.scenes_teacher().parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20_000_000
    assert not list(folder.rglob("*.bin"))


def test_the_bundled_schedule_is_the_recipes():
    """In files of other versions of diffusers keys may be missing or more; those that both have are the same."""
    bundled = DDIMScheduler.from_pretrained(assets.scenes_teacher() / "scheduler").config
    recipe = scenes_model.build_scheduler().config
    shared = {name for name in bundled.keys() & recipe.keys() if not name.startswith("_")}
    assert {name: bundled[name] for name in shared} == {name: recipe[name] for name in shared}
    assert bundled["rescale_betas_zero_snr"]
