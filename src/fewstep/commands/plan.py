"""`fewstep plan`: finds the fastest settings of a recipe that fit a GPU's memory."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.data.buckets import describe_counts, list_buckets
from fewstep.data.reading import CropSettings, PictureReader
from fewstep.data.sources.filters import Buckets
from fewstep.errors import UserError, find_nearest
from fewstep.evaluate.report import markdown_table
from fewstep.measure.memory import GIB, MOMENTS, Need, count_need
from fewstep.method.named import METHODS, MethodName, StatesName
from fewstep.models.families import find_family
from fewstep.recipes import named
from fewstep.recipes.distill import Distill
from fewstep.recipes.pictures import PictureOptions
from fewstep.runs.picture_material import open_source

CONTEXT = int(0.5 * GIB)
"""Bytes that CUDA itself takes."""
NCCL = int(0.4 * GIB)
"""Bytes that NCCL's buffers take on each of several GPUs."""
FRAGMENTED = 1.05
"""What the allocator holds, for each byte that is in use."""
COMFORTABLE = 4
"""Number of pictures together from which on gradient checkpointing costs more time than it saves."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Counts the memory that one update of a recipe needs with several settings, and prints the fastest that fits."""

    recipe: str = "sd15"
    """Recipe to plan for, one that `fewstep distill --help` lists for a released model: sdxl, flux-lora."""
    gpu_memory: float = 24.0
    """Memory of each GPU in GiB."""
    gpus: int = 1
    """Number of GPUs. With several, `--distribution fsdp` is considered: of a student that is trained whole, and of the
    base under adapters."""
    resolution: int = 0
    """Side length of the pictures in pixels; 0 takes the recipe's."""
    batch_size: int = 0
    """Pictures in one update, over all GPUs together; 0 takes the recipe's."""
    states: StatesName = "auto"
    """As for `distill`: with `trajectories` there is no teacher to count."""
    method: MethodName = "lcm"
    """As for `distill`: what is told where to land (`any-step`) has an input more."""
    target_decay: float | None = None
    """As for `distill`: a value other than the recipe's --ema-decay is a second average, which is counted."""
    adversarial: float = 0.0
    """As for `distill`: above 0, heads and what they read are counted."""
    frozen_precision: Literal["auto", "int8", "nf4"] = "auto"
    """As for `distill`: of a recipe with adapters the base is counted in 8 or 4 bits."""
    buckets: Buckets = "off"
    """As for `distill`: with `on` it is told how many pictures of --data lie in each bucket. The memory is that of the
    square, than which no bucket is larger."""
    data: str = ""
    """Pictures, as for `distill`, of which the buckets are counted."""
    tflops: float = 100.0
    """What each GPU reaches in training, in TFLOP/s, by which the hours are estimated: about a third of what its maker
    says for bf16 without sparsity."""

    def __post_init__(self) -> None:
        if self.recipe not in named.MEMORY_GIB:
            known = [name for name in named.list_recipes("distill") if name in named.MEMORY_GIB]
            close = find_nearest(self.recipe, known)
            hint = f"; did you mean {close}?" if close else ""
            raise UserError(f"recipe is {self.recipe}; full-size ones are {', '.join(known)}{hint}")
        if METHODS[self.method].states == "own" or METHODS[self.method].path == "data":
            raise UserError(f"method is {self.method}, whose updates are others than are counted here; give another")
        if not 0 < self.gpu_memory < float("inf") or self.gpus < 1:
            raise UserError(f"gpu_memory is {self.gpu_memory:g} and gpus {self.gpus}; both must be above 0")
        if (self.buckets == "on") != bool(self.data):
            raise UserError("how many pictures lie in each bucket needs both --buckets on and --data")
        if not 0 < self.tflops < float("inf"):
            raise UserError(f"tflops is {self.tflops:g}; it must be above 0")
        if self.resolution % 64 or self.resolution < 0:
            raise UserError(f"resolution is {self.resolution}; it must be a multiple of 64")
        batch = self.batch_size or named.find_recipe(self.recipe).batch_size
        if batch < 1 or batch % self.gpus:
            raise UserError(f"batch_size {batch} is not a multiple of {self.gpus} GPUs; give one that is")


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Settings for a recipe's updates, and the memory that they need."""

    optimizer: str
    fsdp: bool
    checkpointing: bool
    alone: int
    """Bytes with one picture at a time."""
    each: float
    """Bytes of each further picture computed together with it."""
    saved: int
    """Bytes of a checkpoint."""
    flops: int
    """Floating-point operations for each picture."""

    def bytes(self, together: int) -> int:
        """Returns the bytes with so many pictures together."""
        return int(self.alone + self.each * (together - 1))

    def most(self, budget: float, share: int) -> int:
        """Returns the largest divisor of a GPU's `share` of a batch that fits into `budget` bytes; 0 if none does."""
        return max((n for n in range(1, share + 1) if share % n == 0 and self.bytes(n) <= budget), default=0)


def plan(config: Plan) -> list[dict[str, Any]]:
    """Prints the memory for all settings, and the command with the best."""
    recipe = dataclasses.replace(
        named.find_recipe(config.recipe), states=config.states, target_decay=config.target_decay,
        method=config.method, adversarial=config.adversarial, buckets=config.buckets,
        frozen_precision=config.frozen_precision,
    )  # fmt: skip
    batch = config.batch_size or recipe.batch_size
    share, budget = batch // config.gpus, config.gpu_memory * GIB
    side = config.resolution or named.RELEASED[config.recipe.removesuffix("-lora")].side
    for line in _count_buckets(config, recipe, side, batch):
        print(line, flush=True)
    print(f"{config.recipe}, {side} pixels, updates of {batch}, {config.gpus} × {config.gpu_memory:g} GiB", flush=True)
    print("counting memory, which takes a minute, or several for the largest models …", file=sys.stderr, flush=True)
    found = [(candidate, candidate.most(budget, share)) for candidate in list_plans(config, recipe)]
    rows = [
        {
            "optimizer": candidate.optimizer, "distribution": "fsdp" if candidate.fsdp else "ddp",
            "checkpointing": "yes" if candidate.checkpointing else "no",
            "one at a time, GiB": round(candidate.bytes(1) / GIB, 1),
            "pictures together": together or "none fits", "GiB": round(candidate.bytes(max(1, together)) / GIB, 1),
        }
        for candidate, together in found
    ]  # fmt: skip
    print("\n".join(markdown_table(rows)))
    if config.gpus > 1:
        print(_say_start(config, recipe, found))
    print(_say_work(config, recipe, found))
    print(_say_checkpoint(config, recipe, found))
    if recipe.frozen_precision != "auto":
        print(_say_base(recipe))
    print(_say_encoders(recipe))
    print(advise(config, recipe, found))
    return rows


def _count_buckets(config: Plan, recipe: Distill, side: int, batch: int) -> list[str]:
    """Says how many pictures lie in each bucket, if there are any."""
    if config.buckets == "off":
        return []
    assert recipe.family != "any"  # of full-size recipes
    family = find_family(recipe.family)
    buckets = list_buckets(side, family.released_multiple * family.patch)
    source = open_source(PictureOptions(data=config.data, buckets="on"), config.data, side, recipe.seed)
    reading = PictureReader([source], [1.0], CropSettings(resolution=side, buckets=buckets), recipe.seed)
    return describe_counts(reading.count_sides(), batch)


def _say_start(config: Plan, recipe: Distill, found: list[tuple[MemoryPlan, int]]) -> str:
    """Says what main memory holds while a machine with all GPUs starts, of the same settings as the work.

    A network that is spread comes to each GPU by its rows, all processes at one tensor; and text encoders and
    autoencoder come in turn. Elsewhere every process loads the whole model there first, in fp32.
    """
    assert recipe.family != "any"  # of full-size recipes
    family = find_family(recipe.family)
    candidate, _ = choose_settings(config, recipe, found) or found[0]
    tensors = [4 * value.numel() for value in family.shaped_network().parameters()]
    if candidate.fsdp:
        return (
            f"main memory: {(max(tensors) + family.encoder_bytes) / GIB:.1f} GiB at most while a machine with all "
            "processes starts: each reads its rows of the network, and text encoders and autoencoder come in turn"
        )
    whole = (sum(tensors) + family.encoder_bytes) / GIB
    return (
        f"main memory: {config.gpus * whole:.1f} GiB at most while a machine with all processes starts: each reads the "
        f"model whole ({whole:.1f} GiB in fp32) before it goes to its GPU"
    )


def _say_work(config: Plan, recipe: Distill, found: list[tuple[MemoryPlan, int]]) -> str:
    """Says how long the recipe's updates take, of what is counted: the best settings that fit, or else the first."""
    candidate, _ = choose_settings(config, recipe, found) or found[0]
    batch = config.batch_size or recipe.batch_size
    hours = candidate.flops * batch * recipe.steps / (config.gpus * config.tflops * 1e12) / 3600
    return (
        f"work: {candidate.flops / 1e12:.1f} TFLOP a picture, which makes {hours:,.1f} hours for the recipe's "
        f"{recipe.steps:,} updates where each GPU reaches {config.tflops:g} TFLOP/s (--tflops); encoding comes on top"
    )


def _say_checkpoint(config: Plan, recipe: Distill, found: list[tuple[MemoryPlan, int]]) -> str:
    """Says what main memory holds for a checkpoint, of the same settings as the work."""
    candidate, _ = choose_settings(config, recipe, found) or found[0]
    where = "its rows in each process" if candidate.fsdp and not recipe.lora_rank else "in the first process"
    return (
        f"main memory: {candidate.saved / GIB:.1f} GiB for the copy of the state from which a checkpoint is written "
        f"while training goes on, {where}"
    )


def _say_base(recipe: Distill) -> str:
    """Says what main memory holds of a base until it is held in fewer bits."""
    assert recipe.family != "any"  # of full-size recipes
    size = sum(4 * value.numel() for value in find_family(recipe.family).shaped_network().parameters())
    return (
        f"main memory: {size / GIB:.1f} GiB for the base in fp32, in each process, from which it is brought to the GPU "
        f"in {recipe.frozen_precision}"
    )


def choose_settings(
    config: Plan, recipe: Distill, found: list[tuple[MemoryPlan, int]]
) -> tuple[MemoryPlan, int] | None:
    """Returns the best of the settings that fit, with the pictures that they compute together, if there are any."""
    fitting = [each for each in found if each[1]]
    if not fitting:
        return None
    share = (config.batch_size or recipe.batch_size) // config.gpus
    comfortable = (each for each in fitting if each[1] >= min(COMFORTABLE, share))
    return next(comfortable, max(fitting, key=lambda each: each[1]))


def _say_encoders(recipe: Distill) -> str:
    """Says how much of each number goes where pictures are kept encoded, as those of a small set are."""
    return (
        f"each number includes {_count_encoders(recipe):.1f} GiB for autoencoder and text encoders; they rest in main "
        "memory where pictures and captions are kept encoded (--keep-gib of `distill`)"
    )


def _count_encoders(recipe: Distill) -> float:
    assert recipe.family != "any"  # of full-size recipes
    return FRAGMENTED * find_family(recipe.family).encoder_bytes / GIB


def list_plans(config: Plan, recipe: Distill) -> Iterator[MemoryPlan]:
    """Yields the settings to try, from the preferred ones to the last resort."""
    assert recipe.family != "any"  # of full-size recipes
    family = find_family(recipe.family)
    side = (config.resolution or named.RELEASED[config.recipe.removesuffix("-lora")].side) // family.released_multiple
    counted = count_updates(recipe, side)
    for fsdp in (False, True) if config.gpus > 1 and _can_spread(recipe) else (False,):
        for optimizer in ("adamw",) if fsdp and not recipe.lora_rank else ("adamw", "adamw8bit"):
            for checkpointing, (one, each) in counted.items():
                alone = one.peak - (MOMENTS["adamw"] - MOMENTS[optimizer]) * one.learning
                if fsdp:
                    sharded = _count_spread_base if recipe.lora_rank else _count_sharded
                    alone = sharded(recipe, one, alone, config.gpus)
                whole = int(FRAGMENTED * (alone + family.encoder_bytes)) + CONTEXT + (NCCL if config.gpus > 1 else 0)
                yield MemoryPlan(
                    optimizer=optimizer, fsdp=fsdp, checkpointing=checkpointing, alone=whole, each=FRAGMENTED * each,
                    saved=one.saved - (MOMENTS["adamw"] - MOMENTS[optimizer]) * one.learning, flops=one.flops,
                )  # fmt: skip


@functools.lru_cache(maxsize=2)
def count_updates(recipe: Distill, side: int) -> dict[bool, tuple[Need, float]]:
    """Returns what an update of two pictures, one at a time, needs without gradient checkpointing and with it, and the
    bytes of each picture more; `side` is in latents. It takes up to minutes, and is the same for any number of GPUs."""
    assert recipe.family != "any"  # of full-size recipes
    counted = {}
    for checkpointing in (False, True):
        one, two = (
            count_need(
                dataclasses.replace(
                    recipe, batch_size=2 * n, accumulation=2, gradient_checkpointing=checkpointing, optimizer="adamw"
                ),
                find_family(recipe.family), side,
            )
            for n in (1, 2)
        )  # fmt: skip
        counted[checkpointing] = (one, float(two.peak - one.peak))
    return counted


def _can_spread(recipe: Distill) -> bool:
    """Returns whether `distill` takes the recipe with `--distribution fsdp`."""
    try:
        dataclasses.replace(recipe, distribution="fsdp", optimizer="adamw")
    except UserError:
        return False
    return True


def _count_spread_base(recipe: Distill, _one: Need, alone: int, gpus: int) -> int:
    """Counts the bytes of one GPU when the base under adapters, in bf16, is split among several.

    While a block computes, it and the one after it are gathered, and what stands outside the blocks.
    """
    assert recipe.family != "any"  # of full-size recipes
    network = find_family(recipe.family).shaped_network()
    blocks = [sum(value.numel() for value in block.parameters()) for block in network.blocks]
    whole = sum(value.numel() for value in network.parameters())
    return alone - int(2 * whole * (1 - 1 / gpus)) + 2 * (2 * max(blocks) + whole - sum(blocks))


def _count_sharded(recipe: Distill, one: Need, alone: int, gpus: int) -> int:
    """Counts the bytes of one GPU when weights, averages, gradients and moments are split among several.

    While a block computes, all of it, at most a quarter of the weights, is gathered. The teacher, in bf16, is split as
    they are.
    """
    averages = (recipe.ema_decay > 0) + (recipe.second_decay is not None)
    bytes_each = 4 + 4 * averages + 4 + MOMENTS["adamw"]
    parts = alone - int(bytes_each * one.learning * (1 - 1 / gpus)) + one.learning
    if recipe.states == "trajectories":
        return parts  # and no teacher
    assert recipe.family != "any"  # of full-size recipes
    teacher = sum(value.numel() for value in find_family(recipe.family).shaped_network().parameters())
    return parts - int(2 * teacher * (1 - 1 / gpus)) + teacher // 2


def advise(config: Plan, recipe: Distill, found: list[tuple[MemoryPlan, int]]) -> str:
    """Returns the command with the best settings, or what to do where none fits."""
    if (best := choose_settings(config, recipe, found)) is None:
        smaller = "" if recipe.lora_rank else f", or the recipe {config.recipe}-lora, whose adapters need less"
        least = min(candidate.bytes(1) for candidate, _ in found) / GIB - _count_encoders(recipe)
        kept = f"; with pictures kept encoded {least:.1f} GiB would do" if least <= config.gpu_memory else ""
        return f"nothing fits: more GPUs (--gpus) or memory, or a smaller --resolution{smaller}{kept}"
    batch = config.batch_size or recipe.batch_size
    candidate, together = best
    options = [f"--accumulation {batch // together}"]
    options.append("--gradient-checkpointing" if candidate.checkpointing else "--no-gradient-checkpointing")
    options += [f"--optimizer {candidate.optimizer}"] if candidate.optimizer != recipe.optimizer else []
    options += ["--distribution fsdp"] if candidate.fsdp else []
    options += [f"--processes {config.gpus}"] if config.gpus > 1 else []
    options += [f"--batch-size {batch}"] if batch != recipe.batch_size else []
    options += [f"--resolution {config.resolution}"] if config.resolution else []
    options += [f"--frozen-precision {config.frozen_precision}"] if config.frozen_precision != "auto" else []
    options += ["--buckets on"] if config.buckets == "on" else []
    options += [f"--method {config.method}"] if config.method != "lcm" else []
    options += [f"--states {config.states}"] if config.states != "auto" else []
    options += [f"--adversarial {config.adversarial:g}"] if config.adversarial else []
    options += [] if config.target_decay is None else [f"--target-decay {config.target_decay:g}"]
    data = config.data or "PICTURES"
    return f"best: fewstep distill {config.recipe} --teacher MODEL --data {data} {' '.join(options)}"
