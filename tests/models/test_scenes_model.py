"""The bundled teacher: any prompt tokenises, and diffusers' own pipeline runs it."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from fewstep import assets
from fewstep.data.scenes import Scenes


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


def test_stable_diffusion_pipeline_runs_it_unchanged():
    from fewstep.data.pictures import to_pixels
    from fewstep.evaluate.reader import load_reader, read

    pipe = StableDiffusionPipeline.from_pretrained(assets.scenes_teacher())
    pipe.set_progress_bar_config(disable=True)
    pairs = [Scenes(seed=6, split="seen").prompt(i) for i in range(8)]
    images = pipe(
        [text for text, _ in pairs], num_inference_steps=25, guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(i) for i in range(8)],
    ).images  # fmt: skip
    assert images[0].size == (64, 64)
    assert np.asarray(images[0]).std() > 1
    read_back, _ = read(load_reader(assets.scenes_reader()), to_pixels(images))
    assert sum(s is not None and s.agrees_with(p) for s, (_, p) in zip(read_back, pairs, strict=True)) >= 6


def test_everything_bundled_is_small():
    folder = assets.scenes_teacher().parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20_000_000
    assert not list(folder.rglob("*.bin"))
