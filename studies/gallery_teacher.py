"""Makes the gallery's autoencoder, reader, text encoder and UNet, one after the other, on one core.

    OMP_NUM_THREADS=1 nice -n 19 python studies/gallery_teacher.py --out runs/gallery --photographs photographs

Give the same command again, and it goes on where it stopped; a stage whose result is there is left out. SIGTERM lets
it save first. Every stage begins with the average of the one before and leaves something of use in the run folder:
`vae/`, `reader/`, `text_encoder/`, `tokenizer/`, and at the end `pipeline/`. studies/gallery_quality.py measures what
there is. What was trained so far lies in studies/gallery: copy it into the run folder to begin there.

Since latents are known before anything has learnt, only few stages wait for another: `unet first` for `text` and
`latents`, `autoencoder second` for both that are first, `reader second` for the autoencoder. The others can learn side
by side, each a process with its own `--stages`.

`photographs` is a folder with those of scikit-image and scikit-learn (docs/gallery.md), of which chelsea.png and
flower.jpg are kept back.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import tyro
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.data.pictures import to_pixels
from fewstep.data.worlds.gallery import Gallery
from fewstep.diffusion.schedule import Tabulated
from fewstep.evaluate.gallery_reader import GalleryReader, load_gallery_reader
from fewstep.evaluate.reader import save_reader
from fewstep.files import read_safetensors, write_whole
from fewstep.models import scenes_model
from fewstep.models.vocabulary import parse_vocabulary, record_words
from fewstep.teacher.blocks import BlockAutoencoderTask, BlockCode
from fewstep.teacher.gallery_tasks import GalleryReaderTask, SlotTask, expect_slots, list_stated, list_statements
from fewstep.teacher.muon import Muon
from fewstep.teacher.tasks import DiffusionTask, normalise_in_fp32
from fewstep.train.config import LoopConfig
from fewstep.train.loop import fit
from fewstep.train.role import Role
from fewstep.train.task import StudentTask
from gallery_pictures import Mixture

LATENT_CHANNELS = 32
TEXT_WIDTH = 160
TOKENS = 77
"""Of which the last 48 describe the parts of things."""
CODE = "code.safetensors"
LATENTS = "latents.safetensors"
PICTURES = 200_000
TEXT_CAPTIONS = 60_000
TOKENIZER_CAPTIONS = 20_000


@dataclass(frozen=True, kw_only=True)
class Study:
    out: Path = Path("runs/gallery")
    """Run folder."""
    photographs: Path = Path("photographs")
    """Folder of photographs that the autoencoder learns from beside the worlds."""
    stages: tuple[str, ...] = ()
    """Stages to do, by name; by default all, one after the other."""


def _cycle(steps: int, lr: float, batch_size: int = 16, **more: Any) -> LoopConfig:
    return LoopConfig(
        steps=steps, batch_size=batch_size, lr=lr, lr_decay="cosine", warmup_steps=100, ema_decay=0.998,
        checkpoint_every=250, log_every=50, **more,
    )  # fmt: skip


WIDTHS = (16, 32, 64, 128)
"""Of the autoencoder, from fine to coarse."""
AUTOENCODER = {"first": _cycle(4000, 2e-3, precision="bf16"), "second": _cycle(3000, 1e-3, precision="bf16")}
READER = {"first": _cycle(4000, 2e-3, 32), "second": _cycle(6000, 1.5e-3, 32), "third": _cycle(6000, 1.2e-3, 32)}
TEXT = _cycle(8500, 2e-3, 64, precision="bf16", beta2=0.99)
UNET = {
    "first": _cycle(6400, 1.5e-3, 64, precision="bf16", beta2=0.99),
    "second": _cycle(5800, 1e-3, 64, precision="bf16", beta2=0.99),
}


CYCLES = ("first", "second", "third")
"""What a part's folders of weights are called after, in order."""


def main(study: Study) -> None:
    stages: dict[str, tuple[str, Callable[[Path], None]]] = {
        "autoencoder first": ("vae-first", lambda out: train_autoencoder(out, "first", study.photographs)),
        "reader first": ("reader-first", lambda out: train_reader(out, "first")),
        "autoencoder second": ("vae-second", lambda out: train_autoencoder(out, "second", study.photographs)),
        "text": ("text_encoder", train_text_encoder),
        "latents": (LATENTS, lambda out: keep_latents(out, study.photographs)),
        "unet first": ("unet-first", lambda out: train_unet(out, "first")),
        "reader second": ("reader-second", lambda out: train_reader(out, "second")),
        "reader third": ("reader-third", lambda out: train_reader(out, "third")),
        "unet second": ("unet-second", lambda out: train_unet(out, "second")),
        "pipeline": ("pipeline", assemble_teacher),
    }
    if strangers := set(study.stages) - set(stages):
        raise SystemExit(f"--stages {' '.join(sorted(strangers))}: the stages are {', '.join(stages)}")
    for name in study.stages or stages:
        result, do = stages[name]
        part, _, cycle = result.rpartition("-")
        results = [f"{part}-{each}" for each in CYCLES[CYCLES.index(cycle) :]] if cycle in CYCLES else [result]
        if not any((study.out / each).exists() for each in results):
            do(study.out)


def find_newest(run: Path, name: str) -> Path | None:
    """Returns the folder of a part after its last cycle, if it has had one."""
    folders = (run / each for each in (name, *(f"{name}-{cycle}" for cycle in reversed(CYCLES))))
    return next((folder for folder in folders if folder.exists()), None)


def get_newest(run: Path, name: str) -> Path:
    """Returns the same, and ends the study where there is none."""
    folder = find_newest(run, name)
    if folder is None:
        raise SystemExit(f"{run} holds no {name}-{CYCLES[0]} yet: --stages does it before this")
    return folder


def load_code(out: Path, photographs: Path) -> BlockCode:
    """The latents' components, of the pictures that the autoencoder learns from."""
    file = out / CODE
    if not file.exists():
        BlockCode.fit(Mixture(0, photographs)(range(6000)), LATENT_CHANNELS).save(file)
    return BlockCode.load(file)


def build_gallery_autoencoder() -> AutoencoderKL:
    """The layout of the one of scenes, wider at its coarse end."""
    torch.manual_seed(0)
    return scenes_model.build_autoencoder(LATENT_CHANNELS, WIDTHS)


def train_autoencoder(out: Path, cycle: str, photographs: Path) -> None:
    pixels, code, seed = Mixture(list(AUTOENCODER).index(cycle), photographs), load_code(out, photographs), 0
    start, features = build_gallery_autoencoder(), None
    if cycle == "second":
        start, seed = AutoencoderKL.from_pretrained(out / "vae-first"), 1
        features = load_gallery_reader(get_newest(out, "reader")).grid
    task = BlockAutoencoderTask(start.to(memory_format=torch.channels_last), code, pixels, seed, features)
    fit(task, AUTOENCODER[cycle], out / f"autoencoder-{cycle}", f"autoencoder, {cycle}")
    plain = scenes_model.build_autoencoder(LATENT_CHANNELS, WIDTHS)
    plain.load_state_dict(task.averaged.state_dict())
    for folder in (f"vae-{cycle}", "vae"):
        plain.save_pretrained(out / folder)


def train_reader(out: Path, cycle: str) -> None:
    torch.manual_seed(1)
    seed = list(READER).index(cycle)
    if seed == 0:
        task = GalleryReaderTask(GalleryReader(), seed)
    else:
        start = load_gallery_reader(out / f"reader-{CYCLES[seed - 1]}").requires_grad_(True).train()
        autoencoder = AutoencoderKL.from_pretrained(get_newest(out, "vae")).to(memory_format=torch.channels_last)
        task = GalleryReaderTask(start, seed, rebuild=functools.partial(rebuild, autoencoder))
    fit(task, READER[cycle], out / f"reading-{cycle}", f"reader, {cycle}")
    for name in (f"reader-{cycle}", "reader"):
        save_reader(task.averaged, out / name)


@torch.no_grad()
def rebuild(autoencoder: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Maps `[b, 3, 64, 64]` in [−1, 1] to what the autoencoder makes of it, without noise."""
    with torch.autocast("cpu", torch.bfloat16):
        rebuilt: Tensor = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mean).sample
    return rebuilt.float().clamp(-1, 1)


class ByMuon(StudentTask):
    """Learns by Muon, but for the weights whose names begin as in `as_vectors`."""

    as_vectors: tuple[str, ...]

    @property
    def roles(self) -> tuple[Role, ...]:
        make = functools.partial(Muon, as_vectors=self.as_vectors)
        return (Role(weights=self.student, average=self.averaged, make_optimizer=make),)


class TextTask(ByMuon, SlotTask):
    as_vectors = ("text_encoder.embeddings", "text_encoder.text_model.embeddings")


def train_text_encoder(out: Path) -> None:
    captions, prompts = zip(*(Gallery().prompt(i) for i in range(TEXT_CAPTIONS)), strict=True)
    tokenizer = load_tokenizer(out)
    tokens = tokenise(tokenizer, captions)
    torch.manual_seed(2)
    expected = torch.stack([expect_slots(prompt).half() for prompt in prompts])
    stated = [*map(list_stated, prompts)]
    task = TextTask(build_gallery_text_encoder(tokenizer), tokens, list_statements(), stated, expected, 0)
    fit(task, TEXT, out / "text", "text")
    task.averaged["text_encoder"].save_pretrained(out / "text_encoder")


def load_tokenizer(out: Path) -> CLIPTokenizer:
    """Its merges come from captions of the world, in which every word stands many times; it lists these words."""
    captions = (Gallery(seed=1).prompt(i)[0] for i in range(TOKENIZER_CAPTIONS))
    if not (out / "tokenizer").exists():
        scenes_model.build_tokenizer(captions, TOKENS).save_pretrained(out / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    if parse_vocabulary(tokenizer.init_kwargs) is None:  # of a run that began before tokenizers listed words
        record_words(tokenizer, list(captions))
    return tokenizer


def tokenise(tokenizer: CLIPTokenizer, captions: Any) -> Tensor:
    tokens = tokenizer([*captions], padding="max_length", return_tensors="pt").input_ids
    if tokens.shape[1] > TOKENS:
        raise SystemExit(f"a caption has {tokens.shape[1]} tokens, and the text encoder reads {TOKENS}")
    return tokens


def build_gallery_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three layers, 160 wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            attn_implementation="eager",  # the fused one's backward pass takes ten times as long in bf16
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=6 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=5,
            max_position_embeddings=TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_gallery_unet() -> UNet2DConditionModel:
    """A v-network on 32×8×8 latents, all of whose layers are at 8×8, where everything is drawn."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(192,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def keep_latents(out: Path, photographs: Path) -> None:
    """Draws and encodes the training pictures once, in fp16."""
    file = out / LATENTS
    gallery, code, parts = Gallery(), load_code(out, photographs), []
    for start in range(0, PICTURES, 100):
        pixels = to_pixels([gallery[i].image for i in range(start, start + 100)])
        parts.append(code.encode(pixels).half())
        if start % 10_000 == 0:
            print(f"latents: {start} of {PICTURES}", file=sys.stderr, flush=True)
    with write_whole(file) as draft:
        safetensors.torch.save_file({"mean": torch.cat(parts)}, draft)


class TextOnDemand:
    """The encoded captions of a training set, which would fill gigabytes at once; the empty one is last."""

    def __init__(self, text_encoder: CLIPTextModel, tokens: Tensor) -> None:
        self._text_encoder, self._tokens = text_encoder.eval().requires_grad_(False), tokens

    @torch.no_grad()
    def __getitem__(self, index: Tensor) -> Tensor:
        return self._text_encoder(self._tokens[index])[0]


@dataclass(frozen=True)
class Shown:
    """Latents `[n, c, h, w]` of pictures, some of which come several times."""

    latents: Tensor
    pictures: Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.latents[self.pictures[index]]


def list_examples(cycle: str) -> tuple[Tensor, list[str]]:
    """Returns pictures by number, and what is said of each: every one with its own caption, which often names nothing,
    and with an exact one. In the first cycle those of a single thing, from which names are learnt soonest, are shown
    exactly twice more; later all are once more, since it is several things that a UNet which knows names confuses.

    What a caption leaves open is as open as before: an exact one says how many things there are.
    """
    own, exact = Gallery(), Gallery(level="exact")
    told = [exact.prompt(i) for i in range(PICTURES)]
    single = [i for i, (_, prompt) in enumerate(told) if prompt.things is not None and len(prompt.things) == 1]
    more = single * 2 if cycle == "first" else [*range(PICTURES)]
    captions = [*(own.prompt(i)[0] for i in range(PICTURES)), *(caption for caption, _ in told)]
    pictures = [*range(PICTURES), *range(PICTURES), *more]
    return torch.tensor(pictures), [*captions, *(told[i][0] for i in more)]


NOT_MATRICES = ("conv_in", "conv_out", "time_embedding")
"""How the names of those weights of a UNet begin that follow Adam."""


class UNetTask(ByMuon, DiffusionTask):
    as_vectors = NOT_MATRICES


def train_unet(out: Path, cycle: str) -> None:
    latents = load_latents(out)
    tokenizer = load_tokenizer(out)
    text_encoder = CLIPTextModel.from_pretrained(out / "text_encoder").float()
    pictures, captions = list_examples(cycle)
    tokens = tokenise(tokenizer, [*captions, ""])
    scheduler = scenes_model.build_scheduler()
    torch.manual_seed(3)
    seed = list(UNET).index(cycle)
    start: Any = (
        build_gallery_unet()
        if seed == 0
        else UNet2DConditionModel.from_pretrained(out / f"unet-{CYCLES[seed - 1]}").float()
    )
    text: Any = TextOnDemand(text_encoder, tokens)
    shown: Any = Shown(latents * find_scaling_factor(latents), pictures)
    start = start.to(memory_format=torch.channels_last)
    task = UNetTask(start, Tabulated.from_config(scheduler.config), shown, text, seed)
    normalise_in_fp32(task.student)
    task.student.set_attn_processor(AttnProcessor())  # the fused one's backward pass takes ten times as long in bf16
    task.student.compile()  # a quarter sooner
    fit(task, UNET[cycle], out / f"diffusion-{cycle}", f"unet, {cycle}")
    task.averaged.save_pretrained(out / f"unet-{cycle}")
    if find_newest(out, "vae"):
        assemble_teacher(out)


def assemble_teacher(out: Path) -> None:
    """Saves the newest autoencoder and UNet with the text encoder as a pipeline."""
    text_encoder = CLIPTextModel.from_pretrained(out / "text_encoder").float()
    unet = UNet2DConditionModel.from_pretrained(get_newest(out, "unet")).float()
    autoencoder = AutoencoderKL.from_pretrained(get_newest(out, "vae")).float()
    trained = scenes_model.Trained(autoencoder, text_encoder, unet, find_scaling_factor(load_latents(out)))
    scenes_model.save_teacher(out / "pipeline", trained, load_tokenizer(out), scenes_model.build_scheduler())


def load_latents(out: Path) -> Tensor:
    return read_safetensors(out / LATENTS)["mean"].float()


def find_scaling_factor(latents: Tensor) -> float:
    return float(1 / latents.std())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Study))
