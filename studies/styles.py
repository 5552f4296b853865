"""A style LoRA with an LCM-LoRA over their scales, and latent consistency fine-tuning, on a look of the scenes world.

    python studies/styles.py        # about forty minutes on two cores; goes on where it stopped

Figures: docs/styles.md; at 4 steps and the paper's scales 99.2 % of pictures are in the style and 93.8 % right, after
fine-tuning 100 % and 89.5 %. It writes docs/styles/combining.json, heatmap.png and finetuning.json. A picture is in the
style when a linear probe of the reader's features says so; the probe, and the reader, which here is trained on both
looks, are tested on reconstructions first, and the study stops if either is right in less than 99 %.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import torch
import tyro
from torch import Tensor

from fewstep import assets
from fewstep.commands.distill import distill
from fewstep.commands.finetune import finetune
from fewstep.commands.train_lora import train_lora
from fewstep.data.pictures import to_pixels
from fewstep.data.worlds.scenes import Scenes
from fewstep.evaluate.cell import TEACHER_STEPS, Cell, painter_of
from fewstep.evaluate.reader import Reader, load_reader, read
from fewstep.evaluate.roster import Roster, make_scenes_roster
from fewstep.evaluate.scenes_bench import make_scenes_bench
from fewstep.evaluate.scoring import score
from fewstep.evaluate.style import fit_probe
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import attach
from fewstep.models.lora.file import DIFFUSERS_FILE, read_lora
from fewstep.models.pipeline import Pipeline
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes import named
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import default_finetune
from fewstep.recipes.train_lora import TrainLora, default_train_lora
from fewstep.teacher.reader_task import ReaderTask
from fewstep.train.config import LoopConfig
from fewstep.train.loop import fit

LOOKS = ("plain", "leaning")
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Study:
    runs: Path = Path("runs/styles")
    """Folder for what is trained."""
    out: Path = Path("docs/styles")
    """Folder for the figures."""
    n: int = 256
    """Fresh prompts."""
    pictures: int = 400
    """Pictures in the new look that style LoRA and fine-tuning learn from."""
    scales: tuple[float, ...] = (0.4, 0.6, 0.8, 1.0, 1.2)
    """λ1 and λ2."""
    tables: tuple[Literal["combining", "finetuning"], ...] = ("combining", "finetuning")
    """Which of the two are made."""


class Judge:
    """Prompt accuracy and share in the style."""

    def __init__(self, folder: Path, roster: Roster) -> None:
        torch.manual_seed(0)
        task = ReaderTask(load_reader(assets.SCENES_READER).requires_grad_(True), 3, LOOKS)
        loop = LoopConfig(steps=1000, batch_size=64, lr=1e-3, lr_decay="cosine", warmup_steps=50, ema_decay=0.99)
        fit(task, loop, folder, "reader of both looks")
        self.reader: Reader = task.averaged
        teacher = load_latent_model(assets.scenes_teacher(), CPU)
        plain, leaning = (self._features(teacher, look, seed=51) for look in LOOKS)
        self.bench = dataclasses.replace(make_scenes_bench(roster, reader=self.reader), style=fit_probe(leaning, plain))
        plain, leaning = (self._features(teacher, look, seed=52) for look in LOOKS)
        right = torch.cat([~self.bench.style(plain), self.bench.style(leaning)])
        self.probe_accuracy = float(right.float().mean())
        print(f"probe {self.probe_accuracy:.2%}, reader {self.reader_accuracy:.2%}", flush=True)
        if min(self.probe_accuracy, self.reader_accuracy) < 0.99:
            raise SystemExit("the judge is not good enough")

    def _features(self, teacher: LatentModel, look: Any, seed: int, count: int = 1000) -> Tensor:
        scenes = Scenes(seed=seed, split="all", look=look)
        pictures = [scenes[i] for i in range(count)]
        pixels = to_pixels([picture.image for picture in pictures])
        rebuilt = torch.cat([teacher.codec.decode(teacher.codec.encode(part)[0]) for part in pixels.split(100)])
        found, features = read(self.reader, rebuilt.clamp(-1, 1))
        self.reader_accuracy = sum(a == p.scene for a, p in zip(found, pictures, strict=True)) / count
        return features

    def row(self, name: str, model: LatentModel | Pipeline, scale: float, steps: int = TEACHER_STEPS) -> dict[str, Any]:
        """One line of a table, of a teacher or a few-step model; `scale` is guidance in diffusers' convention."""
        if isinstance(model, Pipeline):
            cell = Cell("lcm", steps, "lcm", scale)
            painter = painter_of(cell, model.model, model)
        else:
            cell = Cell("teacher", steps, "trailing", scale)
            painter = painter_of(cell, model, None)
        scored, _ = score(self.bench, cell, painter, name)
        names = ("model", "steps", "network_evaluations", "guidance_scale", "prompt_accuracy", "share_in_style")
        row = {key: scored[key] for key in names}
        print(row, flush=True)
        return row


def main(study: Study) -> None:
    study.out.mkdir(parents=True, exist_ok=True)
    data = {"data": assets.SCENES_LEANING, "pictures": study.pictures}
    lcm_lora = dataclasses.replace(named.find_recipe("scenes-lora"), out=study.runs / "lcm-lora")
    style = dataclasses.replace(default_train_lora(), out=study.runs / "style", **data)
    lcm = dataclasses.replace(named.scenes(), guided_from=0, out=study.runs / "lcm")
    tuned = dataclasses.replace(
        default_finetune(),
        model=str(lcm.out / "model"),
        out=study.runs / "tuned",
        guidance_range=lcm.guidance_range,
        guidance_scale=lcm.guidance_scale,
        **data,
    )
    papers = dataclasses.replace(tuned, out=study.runs / "tuned-fixed-gap", shrink=0.0)
    for train, config in (
        (distill, lcm_lora), (train_lora, style), (distill, lcm),
        (finetune, papers), (finetune, tuned),
    ):  # fmt: skip
        if not (config.out / "model").exists():
            train(config)  # type: ignore[operator]
    judge = Judge(study.runs / "reader", make_scenes_roster(study.n))
    if "combining" in study.tables:
        combining(study, judge, lcm_lora, style)
    if "finetuning" in study.tables:
        finetuning(study, judge, loras=(style, lcm_lora), lcms=(lcm, papers, tuned))


def combining(study: Study, judge: Judge, lcm_lora: Distill, style: TrainLora) -> None:
    """λ1·style + λ2·LCM-LoRA at 4 steps, beside each alone and the style at 50 steps."""
    files = [config.out / "model" / DIFFUSERS_FILE for config in (style, lcm_lora)]
    plain, styled = (load_latent_model(assets.scenes_teacher(), CPU) for _ in range(2))
    attach(styled.parts, read_lora(files[0], styled.parts, styled.family.lora).pairs, "style", 1.0)
    guidance = lcm_lora.guidance_scale
    rows = [
        judge.row("teacher", plain, guidance),
        judge.row("style LoRA", styled, guidance),
    ]
    for steps in (1, 2, 4, 8):
        alone = load_pipeline(assets.scenes_teacher(), "cpu", [(files[1], 1.0)])
        rows.append(judge.row("LCM-LoRA", alone, guidance, steps))
    for first in study.scales:
        for second in study.scales:
            both = load_pipeline(assets.scenes_teacher(), "cpu", [(files[0], first), (files[1], second)])
            row = judge.row("style + LCM-LoRA", both, guidance, 4)
            rows.append({**row, "lambda_1": first, "lambda_2": second})
    write(study.out / "combining.json", judge, rows)
    heat_map(study, [row for row in rows if "lambda_1" in row])


def finetuning(study: Study, judge: Judge, loras: Sequence[Any], lcms: Sequence[Any]) -> None:
    """Latent consistency fine-tuning beside what it competes with, at equal pictures."""
    styled = load_latent_model(assets.scenes_teacher(), CPU)
    style, lcm_lora = (config.out / "model" / DIFFUSERS_FILE for config in loras)
    attach(styled.parts, read_lora(style, styled.parts, styled.family.lora).pairs, "style", 1.0)
    # Without a teacher there is no guidance to learn from: this is what pictures alone can give.
    rows = [judge.row("style LoRA, no guidance", styled, 1.0)]
    names = ("LCM", "LCM, fine-tuned at a fixed gap", "LCM, fine-tuned")
    models = {name: load_pipeline(config.out / "model", "cpu") for name, config in zip(names, lcms, strict=True)}
    models["style + LCM-LoRA"] = load_pipeline(assets.scenes_teacher(), "cpu", [(style, 1.0), (lcm_lora, 1.0)])
    rows += [judge.row(name, model, 3.0, steps) for name, model in models.items() for steps in (1, 2, 4, 8)]
    write(study.out / "finetuning.json", judge, rows)


def write(file: Path, judge: Judge, rows: list[dict[str, Any]]) -> None:
    protocol = {
        "n": judge.bench.roster.main, "prompts_sha256": judge.bench.roster.sha256,
        "probe_accuracy": judge.probe_accuracy, "reader_accuracy": judge.reader_accuracy,
    }  # fmt: skip
    file.write_text(json.dumps({"protocol": protocol, "rows": rows}, indent=2) + "\n")


def heat_map(study: Study, rows: list[dict[str, Any]]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), constrained_layout=True)
    for axis, key, title in zip(
        axes, ("share_in_style", "prompt_accuracy"), ("share in the style", "prompt accuracy"), strict=True
    ):
        values = torch.tensor([row[key] for row in rows]).reshape(len(study.scales), -1)
        axis.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower")
        ticks = [f"{scale:g}" for scale in study.scales]
        axis.set(title=title, xlabel="λ2 (LCM-LoRA)", ylabel="λ1 (style)")
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set_yticks(range(len(ticks)), ticks)
        for i, line in enumerate(values.tolist()):
            for j, value in enumerate(line):
                axis.text(j, i, f"{value:.0%}", ha="center", va="center", color="white" if value < 0.6 else "black")
    figure.savefig(study.out / "heatmap.png", dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Study))
