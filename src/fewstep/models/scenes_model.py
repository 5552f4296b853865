"""The bundled teacher's parts before training: Stable Diffusion 1.x in layout, small enough for a laptop."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.files import replace_folder
from fewstep.models.parts import write_for_every_version
from fewstep.models.vocabulary import record_words

LATENT_CHANNELS = 12
TEXT_WIDTH = 64
MAX_TOKENS = 32
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def build_autoencoder(
    latent_channels: int = LATENT_CHANNELS, widths: tuple[int, int, int, int] = (16, 32, 64, 64)
) -> AutoencoderKL:
    """Builds one from 64×64 pixels to latents of 8×8; 1.0 M parameters by default. `widths` are from fine to coarse."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
    )


def build_unet() -> UNet2DConditionModel:
    """Builds a v-network on 12×8×8 latents; 4.2 M parameters."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Builds two layers, 64 wide, from scratch, with the tokenizer's own begin, end and pad ids."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Makes Stable Diffusion's noise schedule, rescaled to end in noise alone (arXiv 2305.08891); v-prediction.

    Else training would see a trace of the picture at t = T − 1, from which it learns what sampling cannot give it.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def build_tokenizer(captions: Iterable[str], max_tokens: int = MAX_TOKENS) -> CLIPTokenizer:
    """Builds a CLIP byte-pair tokenizer whose merges come from `captions`, and which lists their words.

    All 256 bytes stand in the vocabulary, within a word and at its end, so that any prompt tokenises.
    """
    captions = list(captions)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    counted = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    counted.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    counted.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=2000, min_frequency=2, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
        ),
    )
    merges = [tuple(merge) for merge in json.loads(counted.to_str())["model"]["merges"]]
    words = [*alphabet, *(byte + "</w>" for byte in alphabet), *("".join(merge) for merge in merges), _BEGIN, _END]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    with tempfile.TemporaryDirectory() as folder:
        vocabulary_file, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary_file.write_text(json.dumps(vocabulary))
        merges_file.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        tokenizer = CLIPTokenizer.from_pretrained(
            _write_tokenizer_config(Path(folder), max_tokens), model_max_length=max_tokens
        )
    record_words(tokenizer, captions)
    return tokenizer


def _write_tokenizer_config(folder: Path, max_tokens: int) -> str:
    special = {"bos_token": _BEGIN, "eos_token": _END, "unk_token": _END, "pad_token": _END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": max_tokens, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


@dataclass(frozen=True)
class Trained:
    """The parts that were trained; `scaling_factor` brings latents to a deviation of 1."""

    autoencoder: AutoencoderKL
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    scaling_factor: float


def save_teacher(folder: Path, trained: Trained, tokenizer: CLIPTokenizer, scheduler: DDIMScheduler) -> None:
    """Writes what `StableDiffusionPipeline.save_pretrained` writes, weights in fp16.

    The small text encoder stays in fp32: transformers loads a file in the precision it was saved in, diffusers in
    fp32, and a pipeline of both would not run.
    """
    trained.autoencoder.register_to_config(scaling_factor=trained.scaling_factor)
    pipeline = StableDiffusionPipeline(
        vae=trained.autoencoder,
        text_encoder=trained.text_encoder,
        tokenizer=tokenizer,
        unet=trained.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.vae.half()
    pipeline.unet.half()
    with replace_folder(folder) as draft:
        pipeline.save_pretrained(draft, safe_serialization=True)
        write_for_every_version(draft, ["text_encoder"])
