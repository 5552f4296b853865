"""What each step of `gpu_bench.sh` measures. Full-size models have random weights, made on the card itself."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewstep import assets, cli
from fewstep.commands import bench_generate, bench_train
from fewstep.data.worlds.scenes import Scenes
from fewstep.measure.stopwatch import Stopwatch, matrix_rate, wait_for
from fewstep.models.families import find_family
from fewstep.models.family import Family, LatentModel
from fewstep.models.loading import load_latent_model
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.precision import choose_dtype
from fewstep.recipes import named
from fewstep.runs import learning
from fewstep.runs.folder import list_versions

TESTS = Path(__file__).resolve().parents[1] / "tests"
GIB = 2**30
PROMPT = "a pink heart"
SHOWN = 25
"""Kernels that a profile lists."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the steps compute on."""

    device: str
    out: Path
    rehearse: bool

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)

    @property
    def rounds(self) -> int:
        return 1 if self.rehearse else 5

    def cut(self, batch: int) -> int:
        """Returns how many pictures stand for so many, which are few in a rehearsal."""
        return min(2, batch) if self.rehearse else batch


def get_ready(setting: Setting) -> None:
    """Makes miniatures of the full-size models in a rehearsal, and short work of what takes its time."""
    # The hash of a teacher's weights, which a card records, takes a minute of 12 billion and is no part of an update.
    learning.hash_weights = lambda _network: ""  # type: ignore[assignment]
    if not setting.rehearse:
        return
    sys.path.insert(0, str(TESTS))
    Family.random_model = _miniature  # type: ignore[method-assign]
    for each in ("sd1", "sdxl", "sd3", "flux"):
        type(find_family(each)).random_model = _miniature  # type: ignore[method-assign]
    quick = functools.partial(matrix_rate, seconds=0.01)
    bench_train.matrix_rate = bench_generate.matrix_rate = quick  # type: ignore[attr-defined]
    # To compile takes minutes even here (tests/models/test_compiling.py does it); a rehearsal only asks for it.
    torch.nn.Module.compile = lambda _module, **_: None  # type: ignore[method-assign]
    torch.compile = lambda given, **_: given  # type: ignore[assignment]


def _miniature(family: Family, device: torch.device, *, few_step: bool = False, side: int = 0) -> LatentModel:  # noqa: ARG001
    """Stands in for `Family.random_model`."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        if family.is_flow:
            importlib.import_module("flow_miniatures").FLOWS[family.name](tokenizer, Path(folder))
        else:
            small = {"sd1": "sd15", "sd2": "sd21-base", "sdxl": "sdxl"}[family.name]
            importlib.import_module("miniatures").save_miniature(small, tokenizer, Path(folder))
        model = load_latent_model(folder, device)
    if few_step:
        network = model.network.to_student(model.resolution // model.codec.multiple).requires_grad_(False)
        model = dataclasses.replace(model, network=network)
    return dataclasses.replace(model, source="random weights")


def run(step: str, setting: Setting) -> dict[str, Any]:
    """Returns the figures of a step, with what the card held at most meanwhile."""
    on_card = setting.place.type == "cuda"
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    figures = {"device": setting.device, "versions": list_versions(), "result": STEPS[step](setting)}
    if on_card:
        figures |= {"card": torch.cuda.get_device_name(), "peak_gib": torch.cuda.max_memory_allocated() / GIB}
        figures["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    return figures


def look_at_machine(setting: Setting) -> dict[str, Any]:
    """Says what there is, and what matrix products reach in each format."""
    device, found = setting.place, dict[str, Any]()
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info()
        card = torch.cuda.get_device_properties(device)
        found = {
            "card": card.name, "capability": [card.major, card.minor], "processors": card.multi_processor_count,
            "free_gib": free / GIB, "whole_gib": whole / GIB, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "smi": subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv"],
                capture_output=True, text=True, check=False,
            ).stdout,
        }  # fmt: skip
    for name in ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32",):
        dtype = choose_dtype(name, device)  # type: ignore[arg-type]  # names of formats
        seconds = 0.01 if setting.rehearse else 1.0
        found[f"{name}_gflops"] = matrix_rate(device, dtype, seconds) / 1e9
        torch.set_float32_matmul_precision("high")
        if name == "fp32":
            found["tf32_gflops"] = matrix_rate(device, dtype, seconds) / 1e9
        torch.set_float32_matmul_precision("highest")
        q = torch.zeros(1, 1, 64, 64, dtype=dtype, device=device)
        found[f"{name}_attention"] = torch.nn.attention.SDPBackend(torch._fused_sdp_choice(q, q, q)).name
    return found | {"torch": torch.__version__, "config": torch.__config__.show(), "threads": torch.get_num_threads()}


def paint_bundled(setting: Setting, precision: str) -> dict[str, Any]:
    """Runs the command itself, and says how far its picture is from the CPU's in fp32."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        cli.main(
            [
                "generate",
                "--prompt",
                PROMPT,
                "--steps",
                "4",
                "--device",
                setting.device,
                "--precision",
                precision,
                "--out",
                folder,
            ]
        )
        seconds = time.perf_counter() - begun
        painted = np.asarray(Image.open(next(Path(folder).glob("*.png")))).astype(float)
    wanted = np.asarray(load_pipeline(assets.SCENES_LCM, "cpu", precision="fp32")(PROMPT, steps=4)[0])
    off = np.abs(painted - wanted)
    return {"seconds": seconds, "grey_levels_off": float(off.mean()), "most_grey_levels_off": float(off.max())}


@contextlib.contextmanager
def _updating(setting: Setting, recipe: str, batch: int) -> Iterator[bench_train.Ours]:
    """Yields what does updates of a recipe as `distill` does them."""
    config = bench_train.BenchTrain(
        recipe=recipe, batch_size=batch, accumulation=1, gradient_checkpointing=False, device=setting.device
    )
    with bench_train._measured(config, setting.place) as (settings, model):
        yield bench_train.Ours(settings, model, Stopwatch(setting.place))


def update_once(setting: Setting, recipe: str) -> dict[str, Any]:
    """Does two updates of one picture, and times the second."""
    with _updating(setting, recipe, 1) as ours:
        ours.update()
        wait_for(setting.place)
        begun = time.perf_counter()
        ours.update()
        wait_for(setting.place)
        seconds = time.perf_counter() - begun
        losses = [float(loss) for loss in ours.losses]
    if not np.isfinite(losses).all():
        raise ArithmeticError(f"losses are {losses}")
    return {"losses": losses, "seconds": seconds, "counted_gib": named.MEMORY_GIB.get(recipe)}


def train(setting: Setting, recipe: str, batch: int, *, compare: bool = True, compiled: bool = False) -> dict[str, Any]:
    """Times updates beside the plain arrangement; where memory runs out, of half as many pictures."""
    tried, batch = [], setting.cut(batch)
    while True:
        config = bench_train.BenchTrain(
            recipe=recipe, batch_size=batch, accumulation=1, gradient_checkpointing=False, compare=compare,
            rounds=setting.rounds, warm_up=1, device=setting.device, compile="blocks" if compiled else "off",
        )  # fmt: skip
        try:
            return {**bench_train.bench_train(config), "too_many": tried, "counted_gib": named.MEMORY_GIB.get(recipe)}
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        tried, batch = [*tried, batch], batch // 2  # outside of `except`, whose error would hold the memory
        gc.collect()
        torch.cuda.empty_cache()


def paint(setting: Setting, batch: int, precision: str, compiled: str = "off") -> dict[str, Any]:
    """Times painting at Stable Diffusion 1.5's size beside diffusers' pipeline."""
    how = "blocks" if setting.rehearse and compiled == "graphs" else compiled  # a CPU has no graphs
    config: Any = {"batch_size": setting.cut(batch), "precision": precision, "compile": how, "device": setting.device}
    return bench_generate.bench_generate(
        bench_generate.BenchGenerate(model="sd15", compare=True, steps=4, rounds=setting.rounds, warm_up=1, **config)
    )


def profile(setting: Setting, recipe: str, batch: int) -> dict[str, Any]:
    """Lists what three updates spend the card's time on, and what in them waits for it."""
    on_card = setting.place.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if on_card else []
    with _updating(setting, recipe, setting.cut(batch)) as ours:
        ours.update()
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            if on_card:
                torch.cuda.set_sync_debug_mode("warn")
            ours.update()
            if on_card:
                torch.cuda.set_sync_debug_mode("default")
        wait_for(setting.place)
        begun = time.perf_counter()
        with torch.profiler.profile(activities=activities) as profiled:
            for _ in range(1 if setting.rehearse else 3):
                ours.update()
            wait_for(setting.place)
        seconds = time.perf_counter() - begun
    events = profiled.key_averages()
    own = [(each.self_device_time_total if on_card else each.self_cpu_time_total, each) for each in events]
    own.sort(key=lambda each: -each[0])
    busy = sum(time for time, _ in own) / 1e6
    waiting = ("Synchronize", "_local_scalar_dense", "cudaMemcpy", "aten::item", "aten::nonzero")
    return {
        "seconds": seconds, "busy_seconds": busy, "busy_share": busy / seconds,
        "rows": [{"name": each.key[:120], "count": each.count, "ms": time / 1e3} for time, each in own[:SHOWN]],
        "host": {each.key: each.count for each in events if any(word in each.key for word in waiting)},
        "waits": [f"{each.filename}:{each.lineno}: {each.message}"[:300] for each in waits],
    }  # fmt: skip


def check_exactness(setting: Setting) -> dict[str, Any]:
    """Says whether the same seed gives the same weights twice, and pictures alone what they are in a batch."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    found: dict[str, Any] = {}
    for name, deterministic in (("as_it_is", False), ("deterministic", True)):
        torch.use_deterministic_algorithms(deterministic)
        one, two = (_weights_after(setting, updates=1 if setting.rehearse else 10) for _ in range(2))
        found[name] = {
            "same": _hash(one) == _hash(two),
            "most_apart": max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)),
        }
    torch.use_deterministic_algorithms(False)  # torch's own has no name for it
    pipeline = load_pipeline(assets.SCENES_LCM, setting.device, precision="fp32")
    prompts = [Scenes(seed=0).prompt(i)[0] for i in range(2 if setting.rehearse else 16)]
    alone, together = (
        np.stack([np.asarray(image).astype(float) for image in pipeline(prompts, steps=2, batch_size=size)])
        for size in (1, len(prompts))
    )
    return found | {"most_grey_levels_off_in_a_batch": float(np.abs(alone - together).max())}


def _weights_after(setting: Setting, updates: int) -> list[torch.Tensor]:
    with _updating(setting, "scenes", setting.cut(16)) as ours:
        for _ in range(updates):
            ours.update()
        return [value.detach().float().cpu() for value in ours.state.roles[0].role.weights.parameters()]


def _hash(weights: list[torch.Tensor]) -> str:
    total = hashlib.sha256()
    for value in weights:
        total.update(value.contiguous().numpy().tobytes())
    return total.hexdigest()


STEPS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "machine": look_at_machine,
    "generate-fp32": functools.partial(paint_bundled, precision="fp32"),
    "generate-bf16": functools.partial(paint_bundled, precision="bf16"),
    "update-sd15-lora": functools.partial(update_once, recipe="sd15-lora"),
    "update-sd15": functools.partial(update_once, recipe="sd15"),
    "train-sd15-lora": functools.partial(train, recipe="sd15-lora", batch=16),
    "train-sd15": functools.partial(train, recipe="sd15", batch=16),
    "train-sdxl-lora": functools.partial(train, recipe="sdxl-lora", batch=4),
    "paint-1-bf16": functools.partial(paint, batch=1, precision="bf16"),
    "paint-16-bf16": functools.partial(paint, batch=16, precision="bf16"),
    "paint-1-compiled": functools.partial(paint, batch=1, precision="bf16", compiled="blocks"),
    "paint-16-compiled": functools.partial(paint, batch=16, precision="bf16", compiled="blocks"),
    "paint-16-fp16": functools.partial(paint, batch=16, precision="fp16"),
    "paint-16-fp32": functools.partial(paint, batch=16, precision="fp32"),
    "train-sd35-lora": functools.partial(train, recipe="sd35-lora", batch=2),
    # A second base of 12 billion weights in fp32 would not fit beside this one.
    "train-flux-lora": functools.partial(train, recipe="flux-lora", batch=1, compare=False),
    "profile-sd15-lora": functools.partial(profile, recipe="sd15-lora", batch=16),
    "profile-sd15": functools.partial(profile, recipe="sd15", batch=8),
    "exactness": check_exactness,
    "train-sd15-lora-compiled": functools.partial(train, recipe="sd15-lora", batch=16, compiled=True),
    "paint-1-graphs": functools.partial(paint, batch=1, precision="bf16", compiled="graphs"),
}
"""By name, as `gpu_bench.py` has them in order."""
