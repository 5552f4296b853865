"""`fewstep bench generate`: times painting on this machine, part by part, beside diffusers' pipeline."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewstep import assets
from fewstep.commands.bench_train import plain_arrangement, write_and_compare
from fewstep.data.pictures import to_images
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.evaluate.report import markdown_table
from fewstep.measure.stopwatch import Comparison, Spread, Stopwatch, count_flops, in_turn, machine, matrix_rate
from fewstep.models.card import MAX_STEPS
from fewstep.models.compiling import check_compile
from fewstep.models.engines import with_engine
from fewstep.models.families import find_family
from fewstep.models.loading import pick_device
from fewstep.models.lora.file import DIFFUSERS_FILE
from fewstep.models.model_places import find_exported
from fewstep.models.options import Compile, Engine
from fewstep.models.pipeline import Pipeline
from fewstep.models.pipeline_loading import check_painting, load_pipeline
from fewstep.models.tiny_decoder import load_tiny_decoder
from fewstep.precision import Precision, choose_dtype
from fewstep.runs.folder import list_versions
from fewstep.train.config import check_at_least, check_between

RANDOM = {"sd15": "sd1", "sd21-base": "sd2"}
"""Full-size models with random weights, by the recipe's name."""
_PLAIN, _COMPILED = "diffusers", ", compiled"
Paint = Callable[[Sequence[str], int, int], list[Image.Image]]


@dataclass(frozen=True, kw_only=True)
class BenchGenerate(Comparison):
    """Measures painting, from the prompt to the picture in memory."""

    model: str = assets.SCENES_LCM
    """A few-step model as in `fewstep generate`, or sd15 or sd21-base: random weights of that family's full size."""
    engines: tuple[Engine, ...] = ("torch",)
    """Engines to time, a row for each."""
    tiny_decoder: str = ""
    """Small decoder in TAESD's layout for the model's latents, as a diffusers folder or a file. Each engine then has a
    second row with it."""
    steps: int = 4
    """Steps per picture, each one evaluation of the network."""
    resolution: int = 0
    """Side length of the pictures in pixels, for random weights; 0 takes the family's own."""
    batch_size: int = 1
    """Pictures painted together."""
    precision: Precision = "fp32"
    """What the networks are kept and compute in, diffusers' too."""
    compile: Compile = "off"
    """Also time torch's engine with its repeated blocks compiled as in `generate`, a row more, and with --compare
    diffusers with its whole network compiled; compiling is a part of the warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "batch_size")
        if not self.engines:
            raise UserError("no engine is given; give torch, openvino or both")
        check_between(self, 1, MAX_STEPS, "steps")
        if self.resolution and self.model not in RANDOM:
            raise UserError(f"{self.model} has a resolution of its own; leave --resolution out")


def bench_generate(config: BenchGenerate) -> dict[str, Any]:
    """Prints a table, writes the figures where `config.json` says, and gives them."""
    device = pick_device(config.device)
    pipeline = _load(config, device)
    pipeline.jumps(config.steps)
    prompts = [Scenes(seed=0).prompt(i)[0] for i in range(config.batch_size)]
    subjects: dict[str, tuple[Paint, Stopwatch | None]] = {}
    if config.compare:
        plain = plain_arrangement().PlainGeneration
        subjects[_PLAIN] = (plain(pipeline), None)
        if config.compile != "off":
            subjects[_PLAIN + _COMPILED] = (plain(pipeline, compiled=True), None)
    for tiny in ("", *filter(None, [config.tiny_decoder])):
        for engine in config.engines:
            name = f"{engine}, tiny decoder" if tiny else engine
            watch = Stopwatch(device)
            subjects[name] = (_make_painter(_make_variant(pipeline, engine, tiny), watch), watch)
            if config.compile != "off" and engine == "torch":
                watch = Stopwatch(device)
                compiled = _compiled(_make_variant(pipeline, engine, tiny), config.compile)
                subjects[name + _COMPILED] = (_make_painter(compiled, watch), watch)
    pictures = {name: paint(prompts, config.steps, 0) for name, (paint, _) in subjects.items()}
    acts = {name: _call(paint, prompts, config.steps) for name, (paint, _) in subjects.items()}
    seconds = in_turn(acts, config.rounds, device, config.warm_up)
    first = next(iter(subjects))
    rate, work = matrix_rate(device, choose_dtype(config.precision, device)), _count_work(acts)
    rows = [
        _make_row(
            name, seconds[name], watch.per_round(acts[name], 3) if watch else {}, seconds[first], config.batch_size
        )
        | ({"share_of_matrix_rate": work[name] / seconds[name].median / rate} if name in work else {})
        | _measure_difference(pictures[name], pictures[first])
        for name, (_, watch) in subjects.items()
    ]
    results: dict[str, Any] = {
        "machine": machine(device), "versions": list_versions(), "model": config.model,
        "settings": {
            "steps": config.steps, "batch_size": config.batch_size, "resolution": pipeline.model.resolution,
            "rounds": config.rounds, "precision": config.precision,
        },
        "matrix_gflops": rate / 1e9, "gflop_per_image": max(work.values()) / config.batch_size / 1e9 if work else None,
        "rows": rows,
    }  # fmt: skip
    print(f"{config.model} on {results['machine']['device']}, {results['machine']['threads']} threads")
    print(", ".join(f"{name} {value}" for name, value in results["settings"].items()))
    print("\n".join(markdown_table(rows)))
    write_and_compare(
        results, config.json, config.against,
        lambda found: {
            row["engine"]: row["ratio"] for row in found["rows"] if not row["engine"].startswith(_PLAIN)
        },
    )  # fmt: skip
    return results


def _check(config: BenchGenerate, engine: Engine, device: torch.device) -> None:
    """Raises UserError for an engine or a tiny decoder that the model has no place for, before it is loaded."""
    if config.compile != "off":
        check_compile(config.compile, device)
    source = find_exported(config.model)
    if config.model in RANDOM:
        find_family(RANDOM[config.model]).check_painting(engine, tiny_decoder=bool(config.tiny_decoder))
    elif not (Path(source) / DIFFUSERS_FILE).is_file():  # a LoRA's base is looked at as it is loaded
        check_painting(source, engine, config.tiny_decoder, "auto", device)


def _load(config: BenchGenerate, device: torch.device) -> Pipeline:
    """Loads the model with all its parts in one format, as diffusers' pipelines want them."""
    for engine in config.engines:
        _check(config, engine, device)
    if config.model in RANDOM:
        model = find_family(RANDOM[config.model]).random_model(device, few_step=True, side=config.resolution)
    else:
        model = load_pipeline(config.model, config.device, precision="fp32", offload="off").model
    dtype = choose_dtype(config.precision, device)
    for part in (model.network.backbone, model.codec.autoencoder, *model.conditioner.encoders.values()):
        part.to(dtype)
    return Pipeline(model)


def _compiled(pipeline: Pipeline, how: Compile) -> Pipeline:
    """Returns one with a network of its own, compiled; the others' stays as it is."""
    model = pipeline.model
    network = model.network.with_backbone(copy.deepcopy(model.network.backbone))
    own = Pipeline(dataclasses.replace(model, network=network))
    own.compile(how)
    return own


def _make_variant(pipeline: Pipeline, engine: Engine, tiny: str) -> Pipeline:
    model = pipeline.model
    if tiny:
        codec = model.codec.with_tiny_decoder(load_tiny_decoder(tiny, model.device))
        model = dataclasses.replace(model, codec=codec)
    return Pipeline(with_engine(model, engine))


def _make_painter(pipeline: Pipeline, watch: Stopwatch) -> Paint:
    """Returns what the pipeline does when it is called, with each part timed by `watch`."""
    model, omega = pipeline.model, pipeline.model.family.omega_of(pipeline.guidance_scale)

    def paint(prompts: Sequence[str], steps: int, seed: int) -> list[Image.Image]:
        with watch("text"):
            cond = model.conditioner.encode(prompts)
        with watch("network"):
            z_0 = pipeline.latents(cond, range(seed, seed + len(prompts)), steps, omega)
        with watch("decoder"):
            pixels = model.codec.decode(z_0)
        return to_images(pixels)

    return paint


def _call(paint: Paint, prompts: Sequence[str], steps: int) -> Callable[[], object]:
    return lambda: paint(prompts, steps, 0)


def _count_work(acts: Mapping[str, Callable[[], object]]) -> dict[str, int]:
    """Counts the floating-point operations of what torch computes; compiled, it is what is compiled that counts."""
    counted: dict[str, int] = {}
    for name, act in acts.items():
        if name.startswith("openvino"):
            continue
        counted[name] = counted.get(name.split(_COMPILED)[0]) or count_flops(act)
    return counted


def _make_row(
    name: str, spread: Spread, parts: dict[str, float], first: Spread, batch_size: int
) -> dict[str, Any]:  # fmt: skip
    low, high = spread.ends
    return {
        "engine": name, "seconds": spread.median, "seconds_low": low, "seconds_high": high,
        "images_per_second": batch_size / spread.median, "ratio": first.median / spread.median,
        **{f"{part}_ms": 1e3 * parts[part] for part in ("text", "network", "decoder") if part in parts},
    }  # fmt: skip


def _measure_difference(these: Sequence[Image.Image], those: Sequence[Image.Image]) -> dict[str, float]:
    """Returns how far pictures differ from those of the first row, in grey levels: on average, and at most."""
    off = np.abs(np.stack(list(map(np.asarray, these))).astype(float) - np.stack(list(map(np.asarray, those))))
    return {"grey_levels_off": float(off.mean()), "most_grey_levels_off": float(off.max())}
