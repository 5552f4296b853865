"""What `fewstep bench --compare` runs: training as the field's reference script has it, painting as diffusers has.

The method, the weights and every draw are fewstep's own; the arrangement is not: pictures and texts are encoded at
every update, the teacher is asked with and without the prompt apart, every frozen network is in fp32 and a copy of its
own, the average is kept tensor by tensor, and the host waits for the loss of every update. Nothing is compiled unless
asked for.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import LCMScheduler
from PIL import Image
from torch import Tensor, nn

from fewstep.commands.distill import make_path
from fewstep.diffusion.prediction import Cond, Prediction
from fewstep.diffusion.solvers import SOLVERS
from fewstep.measure.stopwatch import Stopwatch
from fewstep.models.card import StudentCard
from fewstep.models.family import LatentModel
from fewstep.models.lora.adapters import AdaptedNetwork
from fewstep.models.pipeline import Pipeline
from fewstep.precision import autocast, choose_dtype
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import make_task
from fewstep.runs.material import choose_resolution, open_material
from fewstep.train.learner import Learner
from fewstep.train.optimisation import compute_learning_rate


class PlainStudent:
    """Every weight, or adapters on a base of their own."""

    def __init__(self, config: Distill, model: LatentModel) -> None:
        teacher = copy.deepcopy(model.network)
        self.base, self.card = teacher, StudentCard(phases=config.phases or None)
        if config.lora_rank:
            network = copy.deepcopy(model.network)
            rank = config.lora_rank
            adapted = AdaptedNetwork(network, rank, float(rank), model.family.lora.targets, seed=config.seed)
            average = adapted.copy_of_weights() if config.ema_decay else None

            def target(*asked: Any) -> Prediction:
                with adapted.using(average) if average is not None else contextlib.nullcontext():
                    answer: Prediction = network(*asked)
                return answer

            # `network` itself, as peft computes it; not `adapted.student`.
            self.learner = Learner(weights=adapted.weights, student=network, averaged=average, target=target)
            self.modules: list[nn.Module] = [teacher, network, adapted.weights]
        else:
            network = model.network.to_student(choose_resolution(config, model) // model.codec.multiple)
            averaged = copy.deepcopy(network).requires_grad_(False)
            self.learner = Learner(weights=network, student=network, averaged=averaged, target=averaged)
            self.modules = [teacher, network, averaged]
        if config.gradient_checkpointing:
            network.backbone.enable_gradient_checkpointing()


class PlainArrangement:
    """One update at a time."""

    def __init__(self, config: Distill, model: LatentModel, watch: Stopwatch) -> None:
        fresh = open_material(Distill(**{**vars(config), "keep_gib": 0.0}), model, most=config.pictures)
        self.student = PlainStudent(config, model)
        self._task = make_task(config, self.student, make_path(config, self.student, model), model, fresh.latents())
        self._config, self._model, self._watch = config, model, watch
        self._null = model.conditioner.null()
        self._weights = [p for p in self.student.learner.weights.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._weights, lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay
        )
        self.counter, self.losses = 0, list[float]()

    def update(self) -> None:
        """Of the weights; its loss is the last of `losses`."""
        config, learner, method = self._config, self.student.learner, self._task.method
        parts = config.accumulation
        loss = torch.zeros((), device=self._model.device)
        for part in range(parts):
            size = config.batch_size // parts
            start = self.counter + part * size
            with self._watch("data"):
                batch, _ = self._task.draw_batch(range(start, start + size))
            with autocast(self._model.device, choose_dtype(config.precision, self._model.device)):
                z_t = method.schedule.diffuse(batch.z_0, batch.epsilon, batch.t)
                with self._watch("student"):
                    answer = method.consistency_function(learner.student, batch)(z_t, batch.t, batch.e)
                with torch.no_grad(), self._watch("teacher"):
                    guided = self._guided(batch.cond, batch.omega)
                    z_s = SOLVERS[config.solver].step(method.schedule, guided, z_t, batch.t, batch.s)
                with torch.no_grad(), self._watch("target"):
                    aim = method.consistency_function(learner.target_network, batch)(z_s, batch.s, batch.e)
                total = method.distance(answer, aim).mean() / parts
            with self._watch("backward"):
                total.backward()
            loss = loss + total.detach()
        with self._watch("optimiser"):
            nn.utils.clip_grad_norm_(self._weights, config.clip_norm)
            for group in self._optimizer.param_groups:
                group["lr"] = compute_learning_rate(config, len(self.losses), config.steps)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad(), self._watch("average"):
            if learner.averaged is not None:
                for mean, value in zip(learner.averaged.parameters(), learner.weights.parameters(), strict=True):
                    mean.mul_(config.ema_decay).add_(value, alpha=1 - config.ema_decay)
        self.losses.append(loss.item())
        self.counter += config.batch_size

    def list_tensors(self) -> Iterator[Tensor]:
        """Yields those that there are between two updates."""
        model = self._model
        for module in (*self.student.modules, model.codec.autoencoder, *model.conditioner.encoders.values()):
            if module is not None:
                yield from (*module.parameters(), *module.buffers())
        for moments in self._optimizer.state.values():
            yield from moments.values()

    def _guided(self, cond: Cond, omega: Tensor) -> Callable[[Tensor, Tensor], Prediction]:
        scale = omega.view(-1, 1, 1, 1)
        null = cond | {name: value.expand(len(omega), *value.shape[1:]) for name, value in self._null.items()}

        def guided(z: Tensor, at: Tensor) -> Prediction:
            with_prompt = self.student.base(z, at, cond, None)
            without = self.student.base(z, at, null, None)
            acting = torch.where((at >= self._config.guided_from).view(-1, 1, 1, 1), scale, 0.0)
            return Prediction(*((1 + acting) * a - acting * b for a, b in zip(with_prompt, without, strict=True)))

        return guided


class PlainGeneration:
    """diffusers' LatentConsistencyModelPipeline on the same weights, as its documentation shows it."""

    def __init__(self, pipeline: Pipeline, *, compiled: bool = False) -> None:
        model = pipeline.model
        config = {**model.scheduler_config, "original_inference_steps": pipeline.grid_size}
        self._pipeline = model.family.make_pipeline(model, model.network, LCMScheduler.from_config(config))
        self._pipeline.set_progress_bar_config(disable=True)
        if compiled:
            self._pipeline.unet = torch.compile(self._pipeline.unet)
        self._guidance_scale = pipeline.guidance_scale

    def __call__(self, prompts: Sequence[str], steps: int, seed: int) -> list[Image.Image]:
        """Picture i from a generator of its own, seeded with seed + i."""
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        images: list[Image.Image] = self._pipeline(
            list(prompts), num_inference_steps=steps, guidance_scale=self._guidance_scale, generator=generators
        ).images
        return images
