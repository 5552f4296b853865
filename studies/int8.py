"""8 bits beside bf16 and fp32, all but the first by OpenVINO on a CPU: scores, distance from fp32, speed.

    python studies/int8.py                  # the bundled few-step model, a quarter of an hour
    python studies/int8.py --latents 32     # a UNet of Stable Diffusion 1.5's shape with random weights, for 256 pixels

Needs `pip install 'fewstep[int8]'`. Figures: docs/studies/int8.json, docs/speed.md. Times are taken in turn.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from fewstep import assets
from fewstep.evaluate.cell import Cell, painter_of
from fewstep.evaluate.report import markdown_table
from fewstep.evaluate.roster import make_scenes_roster
from fewstep.evaluate.scenes_bench import make_scenes_bench
from fewstep.evaluate.scoring import score
from fewstep.models.engines import openvino as engine
from fewstep.models.pipeline import Pipeline
from fewstep.models.pipeline_loading import load_pipeline

ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "fp32 (torch)": {},
    "bf16": {"engine": "openvino", "precision": "bf16"},
    "int8": {"engine": "openvino", "precision": "int8"},
}
PROMPTS = ["a red star", "a blue heart", "a large green circle above a small yellow square", "a pink moon"] * 4


@dataclass(frozen=True, kw_only=True)
class Study:
    n: int = 512
    """Fresh prompts."""
    steps: tuple[int, ...] = (1, 4)
    rounds: int = 15
    """Timed calls."""
    latents: int = 0
    """Times a random UNet on latents of that side instead."""
    out: Path = field(default=Path("docs/studies/int8.json"))


def main(study: Study) -> None:
    held = json.loads(study.out.read_text()) if study.out.exists() else {}
    key, rows = ("unet", time_unet(study)) if study.latents else ("scenes", score_scenes(study))
    print("\n".join(markdown_table(rows)))
    study.out.write_text(json.dumps({**held, key: rows}, indent=1) + "\n")


def score_scenes(study: Study) -> list[dict[str, Any]]:
    bench, rows = make_scenes_bench(make_scenes_roster(study.n)), []
    pipelines = {name: load_pipeline(assets.SCENES_LCM, "cpu", **given) for name, given in ARRANGEMENTS.items()}
    for steps in study.steps:
        wanted = levels(pipelines["fp32 (torch)"], steps)
        seconds = take_turns({name: partial(paint, each, steps) for name, each in pipelines.items()}, study.rounds)
        for name, pipeline in pipelines.items():
            cell = Cell("lcm", steps, "lcm", pipeline.guidance_scale)
            row = score(bench, cell, painter_of(cell, None, pipeline), pipeline.name, batch_size=16)[0]
            off = float(np.abs(levels(pipeline, steps) - wanted).mean())
            rows.append({
                "steps": steps, "computed in": name, "prompt_accuracy": row["prompt_accuracy"], "fd": row["fd"],
                "grey levels off": round(off, 3), "UNet's time, of bf16's": ratio(seconds, name),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def paint(pipeline: Pipeline, steps: int) -> Tensor:
    cond = pipeline.model.conditioner.encode(PROMPTS)
    return pipeline.latents(cond, range(len(PROMPTS)), steps, 4.0)


def levels(pipeline: Pipeline, steps: int) -> Any:
    return np.stack([np.asarray(image).astype(int) for image in pipeline(PROMPTS, steps=steps, seed=3)])


def take_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of every call, each timed after the others in every round, once it is warm."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str) -> float:
    pairs = zip(seconds[name], seconds["bf16"], strict=True)
    return round(statistics.median(one / other for one, other in pairs), 3)


class Positional(nn.Module):
    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        answer: Tensor = self.unet(z_t, t, text, return_dict=False)[0]
        return answer


class RandomInputs:
    """Stands for a calibration: weights are random, and only time is measured."""

    prompts, sha256 = (), "random"

    def record(self, _: Any, given: list[Tensor]) -> list[list[Tensor]]:
        return [[scale * given[0], *given[1:]] for scale in (1.0, 0.7)]


def time_unet(study: Study) -> list[dict[str, Any]]:
    import openvino

    torch.manual_seed(0)
    given = [torch.randn(1, 4, study.latents, study.latents), torch.tensor([500.0]), torch.randn(1, 77, 768)]
    unet = Positional(UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).eval())
    compiler = engine._Compiler(openvino.Core(), engine.cache_folder(), "bf16")
    arrays = [each.numpy() for each in given]
    calls: dict[str, Callable[[], Any]] = {}
    quantiser = engine._Quantiser(compiler, RandomInputs(), None)  # type: ignore[arg-type]
    for name, each in (("bf16", compiler), ("int8", quantiser)):
        compiled = each.compile(unet, given, "random-sd15")
        calls[name] = lambda compiled=compiled: compiled(arrays)
    del unet
    seconds = take_turns(calls, study.rounds)
    return [
        {"latents": study.latents, "computed in": name, "seconds": round(statistics.median(seconds[name]), 3),
         "time, of bf16's": ratio(seconds, name)}
        for name in calls
    ]  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Study))
