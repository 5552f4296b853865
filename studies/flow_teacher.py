"""A trained flow transformer of the scenes world: Stable Diffusion 3's layout, taught by the bundled UNet.

    python studies/flow_teacher.py            # an hour and a half of one core, from the weights that are kept
    python studies/flow_teacher.py --train    # one more, and it trains them anew; goes on where it stopped

The bundled teacher is a flow by an exact change of variables: the same share of noise, the state on another scale. A
small transformer learns its velocity at every time, with the caption and without, and is then a model as people have
them: a diffusers folder that every command takes. It is distilled as one, and its student is measured against it.

Figures: docs/families.md; a whole run writes docs/studies/flow-teacher.json. The weights are kept in fp16 in
docs/studies/flow-teacher.safetensors.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import tyro
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from common import OUT, RUNS, SHOWN, Table
from fewstep import assets
from fewstep.commands.distill import distill
from fewstep.commands.train_teacher import encode_scenes
from fewstep.data import draws
from fewstep.data.order import SampleOrder
from fewstep.data.worlds.scenes import Scenes
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Cond, Parameterisation, Prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.evaluate.cell import Cell, painter_of
from fewstep.evaluate.roster import make_scenes_roster
from fewstep.evaluate.scenes_bench import make_scenes_bench
from fewstep.evaluate.scoring import score
from fewstep.files import read_safetensors, write_whole
from fewstep.models.families.unet import UNetNetwork
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes import named
from fewstep.teacher.tasks import StudentTask
from fewstep.train.config import LoopConfig
from fewstep.train.loop import fit
from fewstep.train.task import Loss

CPU = torch.device("cpu")
SHIFT = 3.0
WIDTH, LAYERS, HEADS = 128, 6, 4
DROP_RATE = 0.12
KEPT = OUT / "flow-teacher.safetensors"
T5_TOKENS = 256
"""The zeros that stand for an absent T5 in a prompt, all of them the same through all blocks."""


@dataclass(frozen=True, kw_only=True)
class Study:
    train: bool = False
    """Train the transformer, and keep it, though there is one."""
    pictures: int = 20_000
    """Scenes to learn from."""
    steps: int = 5000
    """Updates of the transformer."""
    batch_size: int = 64
    n: int = 512
    """Fresh prompts to measure by."""
    guidance: float = 1.5
    """What teacher and students are guided by, in diffusers' convention."""
    updates: int = 300
    """Of each student."""
    methods: tuple[str, ...] = ("lcm",)
    """What students learn by; any-step takes another hour and a half."""


class FlowUNet(UNetNetwork):
    """z_t of a flow is z of the betas over α + σ, at the time of the same α/σ."""

    def __init__(
        self, unet: Any, betas: Schedule, parameterisation: Parameterisation, pixels_per_latent: int, flow: Flow
    ) -> None:  # fmt: skip
        super().__init__(unet, flow, parameterisation, pixels_per_latent)
        self._inner = UNetNetwork(unet, betas, parameterisation, pixels_per_latent)

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond, omega: Tensor | None) -> Prediction:
        own = self._inner.schedule.time_of_lam(self.schedule.lam(t))
        alpha, sigma = self._inner.schedule.coefficients(own, z_t)
        return self._inner(z_t * (alpha + sigma), own, cond, omega)


class TaughtTask(StudentTask):
    """Regresses the teacher's velocity of noised scenes, with c replaced by the empty caption at a rate."""

    def __init__(
        self, student: nn.Module, teacher: FlowUNet, latents: Tensor, theirs: Tensor, text: Tensor, pooled: Tensor
    ) -> None:  # fmt: skip
        """`latents` are scaled; `theirs` `[n + 1, l, d]` are captions as the teacher reads them, and `text`, `pooled`
        as the student does, the empty one last."""
        self.student, self.averaged = student, copy.deepcopy(student)
        self._teacher, self._latents, self._theirs = teacher, latents, theirs
        self._text, self._pooled = text, pooled
        self._order = SampleOrder(0, (len(latents),))

    def loss(self, counters: range) -> Loss:
        index = torch.tensor(self._order(counters))
        z_0, schedule = self._latents[index], self._teacher.schedule
        dropped = draws.uniform(0, "drop", counters) < DROP_RATE
        index = torch.where(dropped, len(self._latents), index)
        t = schedule.pick(draws.uniform(0, "t", counters))
        epsilon = draws.normal(0, "epsilon", counters, z_0.shape[1:])
        z_t = schedule.diffuse(z_0, epsilon, t)
        with torch.no_grad():
            wanted = self._teacher(z_t, t, {"text": self._theirs[index]}, None)
        found = self.student(z_t, t, {"text": self._text[index], "pooled": self._pooled[index]}, None)
        velocity = wanted.epsilon - wanted.z_0
        return Loss.from_mean(functional.mse_loss((found.epsilon - found.z_0).float(), velocity), counters)


class Attention:
    """Joint attention in which the last token of the text counts as often as T5's zeros are many."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Any:
        def heads(x: Tensor, *layers: nn.Module | None) -> Tensor:
            whole = layers[0](x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # type: ignore[misc]
            return whole if layers[1] is None else layers[1](whole)

        image = [
            heads(hidden_states, *each)
            for each in ((attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None))
        ]
        text = [
            heads(encoder_hidden_states, *each)
            for each in (
                (attn.add_q_proj, attn.norm_added_q), (attn.add_k_proj, attn.norm_added_k), (attn.add_v_proj, None),
            )
        ]  # fmt: skip
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(image, text, strict=True))
        weight = q.new_zeros(k.shape[2])
        weight[-1] = torch.tensor(float(T5_TOKENS)).log()
        # On a CPU the backward pass of attention takes ten times as long in bf16.
        with torch.autocast(q.device.type, enabled=False):
            joint = functional.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), attn_mask=weight.float().expand(q.shape[2], -1)
            )
        joint = joint.transpose(1, 2).flatten(2).to(q.dtype)
        count = hidden_states.shape[1]
        answer = attn.to_out[0](joint[:, :count])
        return answer, None if attn.context_pre_only else attn.to_add_out(joint[:, count:])


def make_pipeline(place: Path, width: int = WIDTH, layers: int = LAYERS) -> StableDiffusion3Pipeline:
    """Makes the model before its training, of the autoencoder and the text encoder of a teacher's folder, which is both
    of its own."""
    tokenizer = CLIPTokenizer.from_pretrained(place / "tokenizer")
    bundled = CLIPTextModel.from_pretrained(place / "text_encoder")
    config = CLIPTextConfig(**{**bundled.config.to_dict(), "num_hidden_layers": 3})
    encoder = CLIPTextModelWithProjection(config)
    state = encoder.state_dict()
    held = {name.removeprefix("text_model."): value for name, value in bundled.state_dict().items()}
    for name, value in state.items():
        if "layers.2." in name:  # adds nothing: what this layout reads is the layer before the last
            value.zero_()
        elif name != "text_projection.weight":
            value.copy_(held[name.removeprefix("text_model.")])
    state["text_projection.weight"].copy_(torch.eye(config.projection_dim))
    vae = AutoencoderKL.from_pretrained(place / "vae")
    channels, text = vae.config.latent_channels, 2 * config.hidden_size
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=channels, out_channels=channels, num_layers=layers,
        attention_head_dim=width // HEADS, num_attention_heads=HEADS, joint_attention_dim=text,
        caption_projection_dim=width, pooled_projection_dim=text, pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip
    for block in transformer.transformer_blocks:  # as DiT begins: each block adds nothing
        for norm in (block.norm1, block.norm1_context):
            nn.init.zeros_(norm.linear.weight)
            nn.init.zeros_(norm.linear.bias)
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae, text_encoder=encoder, tokenizer=tokenizer,
        text_encoder_2=copy.deepcopy(encoder), tokenizer_2=tokenizer, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


@torch.no_grad()
def encode(model: LatentModel, captions: list[str], at_once: int = 500) -> tuple[Tensor, Tensor]:
    """Returns captions as the transformer reads them, with one of T5's zeros for all."""
    text, pooled = [], []
    for start in range(0, len(captions), at_once):
        cond = model.conditioner.encode(captions[start : start + at_once])
        text.append(cond["text"][:, : 1 - T5_TOKENS].clone())
        pooled.append(cond["pooled"])
    return torch.cat(text), torch.cat(pooled)


def make_teacher(study: Study, run: Path) -> Path:
    """Trains the transformer, and returns the folder of its model."""
    folder = run / "model"
    if (folder / "model_index.json").exists():
        return folder
    start = run / "start"
    make_pipeline(assets.scenes_teacher()).save_pretrained(start)
    if KEPT.exists() and not study.train:
        return save(start, {name: value.float() for name, value in read_safetensors(KEPT).items()}, folder)
    model, teacher = load_latent_model(start, CPU), load_latent_model(assets.scenes_teacher(), CPU)
    network, own = model.network, teacher.network
    assert isinstance(own, UNetNetwork)
    network.backbone.set_attn_processor(Attention())
    network.requires_grad_(True)
    scenes = Scenes()
    file = run / "latents.safetensors"
    if not file.exists():
        with write_whole(file) as draft:
            mean = encode_scenes(teacher.codec.autoencoder, scenes, study.pictures)
            safetensors.torch.save_file({"mean": mean}, draft)
    latents = read_safetensors(file)["mean"] * teacher.codec.scale
    captions = [*(scenes.prompt(i)[0] for i in range(study.pictures)), ""]
    theirs = torch.cat(
        [teacher.conditioner.encode(captions[i : i + 500])["text"] for i in range(0, len(captions), 500)]
    )
    flow = FlowUNet(own.unet, own.schedule, own.parameterisation, own.pixels_per_latent, Flow(shift=SHIFT))
    task = TaughtTask(network, flow, latents, theirs, *encode(model, captions))
    config = LoopConfig(
        steps=study.steps, batch_size=study.batch_size, lr=1e-3, lr_decay="cosine", warmup_steps=200, ema_decay=0.998,
        checkpoint_every=100, precision="bf16",
    )  # fmt: skip
    fit(task, config, run / "training", "transformer")
    state = task.averaged.backbone.state_dict()
    with write_whole(KEPT) as draft:
        safetensors.torch.save_file({name: value.half().contiguous() for name, value in state.items()}, draft)
    return save(start, state, folder)


def save(start: Path, state: dict[str, Tensor], folder: Path) -> Path:
    """Writes the model of `start` with these weights of its transformer, and returns its folder."""
    pipe = StableDiffusion3Pipeline.from_pretrained(start, text_encoder_3=None, tokenizer_3=None)
    pipe.transformer.load_state_dict(state)
    pipe.save_pretrained(folder)
    return folder


def main(study: Study) -> None:
    run = RUNS / "flow-teacher"
    folder = make_teacher(study, run)
    table = Table("flow-teacher", study.n)
    bench = make_scenes_bench(make_scenes_roster(study.n, repeated=16))
    model = load_latent_model(folder, CPU)
    cells = [Cell("midpoint", 12, "trailing", study.guidance), *(
        Cell("euler", steps, "trailing", study.guidance) for steps in (1, 2, 4, 8)
    )]  # fmt: skip
    for i, cell in enumerate(cells):
        row, kept = score(bench, cell, painter_of(cell, model, None), "teacher", folder=run / "scores" / "teacher")
        if not i:
            bench = dataclasses.replace(bench, teacher_latents=kept.latents)
        publish(table, row, "teacher")
    for method in study.methods:
        more = {"skip": 125} if method == "any-step" else {}
        config = dataclasses.replace(
            named.find_recipe("scenes"), teacher=str(folder), out=run / method, method=method, steps=study.updates,
            guidance_range=(study.guidance, study.guidance), guidance_scale=study.guidance, guided_from=0,
            sample_every=0, **more,
        )  # fmt: skip
        distill(config)
        student = load_pipeline(run / method / "model", "cpu")
        for steps in (1, 2, 4, 8):
            cell = Cell("lcm", steps, "lcm", study.guidance)
            row, _ = score(bench, cell, painter_of(cell, None, student), method, folder=run / "scores" / method)
            publish(table, row, method)


def publish(table: Table, row: dict[str, Any], model: str) -> None:
    table.publish([{"model": model, **{name: row[name] for name in ("sampler", *SHOWN, "to_teacher") if name in row}}])


if __name__ == "__main__":
    main(tyro.cli(Study))
