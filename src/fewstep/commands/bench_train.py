"""`fewstep bench train`: how fast a recipe trains here, and where its time goes, beside the plain arrangement."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fewstep.commands.distill import make_path, make_student
from fewstep.data.worlds.scenes import Scenes
from fewstep.documents import load_json
from fewstep.errors import UserError
from fewstep.evaluate.report import markdown_table
from fewstep.files import write_whole
from fewstep.measure.stopwatch import (
    Comparison,
    Spread,
    Stopwatch,
    count_flops,
    in_turn,
    machine,
    matrix_rate,
    most_bytes,
)
from fewstep.models.families import find_family
from fewstep.models.family import LatentModel
from fewstep.models.loading import load_latent_model, pick_device
from fewstep.parallel.world import current_world
from fewstep.precision import Precision, choose_dtype
from fewstep.recipes import named
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import make_task
from fewstep.runs.folder import list_versions
from fewstep.runs.material import choose_resolution, open_material
from fewstep.train.distill_task import DistillTask
from fewstep.train.loop import begin, do_update

OURS, PLAIN = "fewstep", "plain"
ALLOWED = 0.9
"""A ratio under this part of an earlier one is called a fall."""


@dataclass(frozen=True, kw_only=True)
class BenchTrain(Comparison):
    """Measures updates of a recipe: on the bundled teacher, or on random weights of the family's full size."""

    recipe: str = "scenes"
    """Recipe to measure, one of those that `fewstep distill --help` lists."""
    batch_size: int = 0
    """Pictures an update; 0 takes the recipe's."""
    accumulation: int = 0
    """Parts that a batch is computed in; 0 takes the recipe's."""
    resolution: int = 0
    """Side of the pictures in pixels; 0 takes the model's own."""
    gradient_checkpointing: bool | None = None
    """As in `distill`; the recipe's when not given."""
    precision: Precision = "auto"
    """What networks compute in."""
    frozen_precision: Precision = "auto"
    """What weights that do not learn are stored in."""
    compile: Literal["off", "blocks"] = "off"
    """As in `distill`; compiling is a part of the warm-up."""


class Arrangement(Protocol):
    """Is one way to train."""

    @property
    def losses(self) -> Sequence[Tensor | float]:
        """Returns those of the updates so far."""
        ...

    def update(self) -> None:
        """Does one update of the weights."""
        ...

    def list_tensors(self) -> Iterator[Tensor]:
        """Yields those that there are between two updates."""
        ...


class Ours:
    """Does what `fewstep distill` does at an update, without log and checkpoints."""

    def __init__(self, config: Distill, model: LatentModel, watch: Stopwatch) -> None:
        self.config, self._model, self._watch = config, model, watch
        student = make_student(config, model)
        learner = student.learner
        network = watch.around("student", learner.student, without_gradient="target")
        target = learner.target and watch.around("target", learner.target)
        student.learner = dataclasses.replace(learner, student=network, target=target)
        path = watch.around("teacher", make_path(config, student, model))
        self._latents = open_material(config, model, most=config.pictures).latents()
        task = make_task(config, student, path, model, self._latents)
        if not isinstance(task, DistillTask):
            raise UserError(f"{config.method} has no one step of a teacher that could be timed; give another --method")
        self._task = task
        draw_batch = watch.around("data", self._task.draw_batch)
        self._task.draw_batch = draw_batch  # type: ignore[method-assign]  # of this task alone
        self.state = begin(self._task.roles, config)

    @property
    def losses(self) -> Sequence[Tensor]:
        return self.state.roles[0].losses

    def update(self) -> None:
        do_update(self._task, self.state, self.config, current_world(), self._watch)

    def list_tensors(self) -> Iterator[Tensor]:
        model = self._model
        modules: list[nn.Module | None] = [model.network, model.codec.autoencoder, *model.conditioner.encoders.values()]
        for role in self.state.roles:
            modules += role.copies.values()
            for moments in role.optimizer.state.values():
                yield from (moment for moment in moments.values() if isinstance(moment, Tensor))
        for module in modules:
            if module is not None:
                yield from (*module.parameters(), *module.buffers())
        kept = getattr(self._latents, "encoded", None)
        held = kept.tensors().values() if kept else ()
        yield from (value for value in held if isinstance(value, Tensor) and value.device == model.device)


def bench_train(config: BenchTrain) -> dict[str, Any]:
    """Prints a table, writes the figures where `config.json` says, and returns them."""
    device = pick_device(config.device)
    with _measured(config, device) as (recipe, model):
        watch = Stopwatch(device)
        kinds: dict[str, Any] = {
            OURS: Ours,
            **({PLAIN: plain_arrangement().PlainArrangement} if config.compare else {}),
        }
        # Adapters hang on the model itself: what others copy must be copied before.
        made = {name: kinds[name](recipe, model, watch) for name in reversed(kinds)}
        seconds = in_turn({name: each.update for name, each in made.items()}, config.rounds, device, config.warm_up)
        dtype = choose_dtype(config.precision, device)
        rate = matrix_rate(device, dtype)
        rows = [_make_row(name, made[name], seconds[name], recipe, rate, watch) for name in kinds]
    results = {
        "machine": machine(device), "versions": list_versions(), "recipe": config.recipe,
        "settings": {
            **_shown(recipe), "resolution": choose_resolution(recipe, model),
            "dtype": str(dtype).removeprefix("torch."),
        },
        "matrix_gflops": rate / 1e9, "rows": rows,
    }  # fmt: skip
    if config.compare:
        results["ratio"] = rows[0]["images_per_second"] / rows[1]["images_per_second"]
        results["bytes_ratio"] = rows[0]["tensors_gib"] / rows[1]["tensors_gib"]
    _print(results)
    write_and_compare(results, config.json, config.against, lambda found: {config.recipe: found["ratio"]})
    return results


def write_and_compare(
    results: dict[str, Any], out: Path | None, against: Path | None, ratios: Callable[[Any], dict[str, float]]
) -> None:
    """Writes the figures to `out`. Raises UserError where a ratio has fallen under 0.9 of that in `against`."""
    if out is not None:
        with write_whole(out) as draft:
            draft.write_text(json.dumps(results, indent=2) + "\n")
    if against is None:
        return
    try:
        before = ratios(load_json(against))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{against} is not a file that `fewstep bench --compare --json` wrote") from error
    now = ratios(results)
    both = [name for name in before if name in now]
    if not both:
        raise UserError(f"{against} has ratios of {', '.join(before)} and this is of {', '.join(now)}")
    for name in both:
        if now[name] < ALLOWED * before[name]:
            raise UserError(f"{name} is slower than it was: ratio {now[name]:.2f}, and {before[name]:.2f} in {against}")
    print(f"no slower than {against}: {', '.join(f'{name} {now[name]:.2f} ({before[name]:.2f})' for name in both)}")


def _make_row(
    name: str, made: Arrangement, spread: Spread, recipe: Distill, rate: float, watch: Stopwatch
) -> dict[str, Any]:  # fmt: skip
    parts = watch.per_round(made.update, 3)
    if "gradients" in parts:  # the backward pass is what is left of them
        inside = sum(parts[part] for part in ("data", "student", "teacher", "target"))
        parts["backward"] = parts.pop("gradients") - inside
    if recipe.compile != "off":
        torch.compiler.set_stance("force_eager")  # what is compiled cannot be counted
    work = count_flops(made.update)
    most = most_bytes(made.update, made.list_tensors())
    if recipe.compile != "off":
        torch.compiler.set_stance("default")
    low, high = (recipe.batch_size / each for each in reversed(spread.ends))
    return {
        "arrangement": name, "images_per_second": recipe.batch_size / spread.median, "images_per_second_low": low,
        "images_per_second_high": high, **{f"{part}_ms": 1e3 * parts[part] for part in sorted(parts)},
        "gflop_per_image": work / recipe.batch_size / 1e9, "share_of_matrix_rate": work / spread.median / rate,
        "tensors_gib": most / 2**30, "last_loss": float(made.losses[-1]),
    }  # fmt: skip


@contextlib.contextmanager
def _measured(config: BenchTrain, device: torch.device) -> Iterator[tuple[Distill, LatentModel]]:
    """Yields the recipe as it is measured, its teacher, and for full-size ones a folder of noise to learn from."""
    recipe = named.find_recipe(config.recipe)
    changes: dict[str, Any] = {"device": config.device, "precision": config.precision}
    changes |= {"frozen_precision": config.frozen_precision, "compile": config.compile}
    for name in ("batch_size", "accumulation", "resolution"):
        if value := getattr(config, name):
            changes[name] = value
    if config.gradient_checkpointing is not None:
        changes["gradient_checkpointing"] = config.gradient_checkpointing
    batch = config.batch_size or recipe.batch_size
    recipe = dataclasses.replace(recipe, pictures=2 * batch, **changes)
    if recipe.teacher:
        yield recipe, load_latent_model(recipe.teacher, device)
        return
    assert recipe.family != "any"  # without a teacher of its own
    model = find_family(recipe.family).random_model(device)
    with tempfile.TemporaryDirectory() as folder:
        side = recipe.resolution or model.resolution
        draw, scenes = np.random.default_rng(0), Scenes(seed=0)
        for i in range(recipe.pictures):
            pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{i:05d}.png", compress_level=0)
            (Path(folder) / f"{i:05d}.txt").write_text(scenes.prompt(i)[0])
        with contextlib.redirect_stdout(sys.stderr):
            yield dataclasses.replace(recipe, teacher="random weights", data=folder), model


def plain_arrangement() -> Any:
    """Loads the module of that name, which stands in a checkout's studies/, for it is not a part of what users need."""
    file = Path(__file__).parents[3] / "studies" / "plain_arrangement.py"
    if not file.exists():
        raise UserError("the plain arrangement stands in studies/ of a checkout; install fewstep from one to --compare")
    spec = importlib.util.spec_from_file_location("plain_arrangement", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _shown(recipe: Distill) -> dict[str, Any]:
    names = ("batch_size", "accumulation", "gradient_checkpointing", "lora_rank", "solver", "guided_from", "compile")
    return {name: getattr(recipe, name) for name in names}


def _print(results: dict[str, Any]) -> None:
    print(f"{results['recipe']} on {results['machine']['device']}, {results['machine']['threads']} threads")
    print(", ".join(f"{name} {value}" for name, value in results["settings"].items()))
    print(f"matrix products: {results['matrix_gflops']:.0f} GFLOP/s")
    print("\n".join(markdown_table(results["rows"])))
    if "ratio" in results:
        print(f"ratio: {results['ratio']:.2f} × the images a second, {results['bytes_ratio']:.2f} × the bytes")
