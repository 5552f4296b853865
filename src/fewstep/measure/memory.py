"""What one update of a full-size model needs, counted on tensors that have shapes and no contents."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fewstep.diffusion.prediction import Network
from fewstep.diffusion.schedule import Schedule
from fewstep.measure.shapes import make_fake, norms_in_fp32
from fewstep.measure.stopwatch import LiveBytes, Work
from fewstep.method.adversarial import Heads, Renoising, heads_losses
from fewstep.method.distances import DISTANCES
from fewstep.method.named import METHODS
from fewstep.method.paths import TeacherPath, TrainingBatch, kept_path
from fewstep.method.step import Method, answer_both, compare, consistency_losses
from fewstep.method.walks import find_stops
from fewstep.models.family import Family
from fewstep.models.lora.adapters import AdaptedNetwork
from fewstep.recipes.distill import Distill
from fewstep.train.adversarial_task import Judge
from fewstep.train.learner import TARGETS, Learner, learn_every_weight

GIB = 2**30
MOMENTS = {"adamw": 8, "adamw8bit": 2}
"""Bytes of both moments, per weight that learns."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one update takes, in bytes but for `learning` and `flops`."""

    peak: int
    """What there is at the worst moment: weights, averages, gradients, moments, activations."""
    weights: int
    """Weights and average alone."""
    learning: int
    """How many weights learn."""
    saved: int
    """What a checkpoint holds, of which there is a copy in main memory while training goes on."""
    flops: int
    """Counts floating-point operations of matrix products, attention and convolutions, for each picture."""


def count_need(config: Distill, family: Family, side: int, *, in_bf16: bool = True) -> Need:
    """Counts what one process needs in the midst of a run; `side` is that of the latents.

    One whole update is run, teacher, target, student, backward pass and all, and every tensor's bytes are followed from
    its making to its end (torch's fake tensors); networks compute in bf16 under autocast, norms in fp32 as on CUDA.
    """
    learner, teacher, judge, schedule, modules = _make_networks(config, family)
    with FakeTensorMode(allow_non_fake_inputs=True), norms_in_fp32(enabled=in_bf16):
        make_fake(modules)
        null = None if family.guided_inside else family.shaped_condition(1)
        named = METHODS[config.method]
        distance = DISTANCES[named.choose_distance(config.distance)](config.huber_c)
        kept = config.states == "trajectories"
        path = kept_path if kept else TeacherPath(teacher, schedule, null)
        method = Method(schedule, path, distance, landing=named.landing, told_end=named.told_end)
        target = TARGETS[named.choose_target(config.target, config.learns_at)](learner)
        batch = _make_batch(family, side, config.batch_size // config.accumulation, kept=kept)
        live = LiveBytes.with_weights(modules)
        weights = live.now
        parts = min(2, config.accumulation)
        with Work() as work, live:
            for _ in range(parts):  # the second part finds the first one's gradients
                with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16, cache_enabled=False):
                    if judge is None:
                        loss = consistency_losses(method, learner.student, target, batch).mean()
                    else:
                        loss = _judge(judge, method, learner.student, target, batch)
                loss.backward()
    learning = sum(p.numel() for p in learner.weights.parameters() if p.requires_grad)
    judging = 0 if judge is None else sum(p.numel() for p in judge.heads.parameters())
    moments = MOMENTS[config.optimizer] * (learning + judging)
    held = moments + _count_walkers(config, family, side, schedule)
    copies = 1 + sum(each is not None for each in (learner.averaged, learner.target_average))
    saved = moments + 4 * (copies * learning + judging)
    pictures = parts * (config.batch_size // config.accumulation)
    flops = work.flops // pictures
    return Need(peak=live.most + held, weights=weights, learning=learning, saved=saved, flops=flops)


def _judge(judge: Judge, method: Method, student: Network, target: Network | None, batch: TrainingBatch) -> Tensor:
    """Computes the heads' loss with its gradient, and returns that of the student, whose graph is there meanwhile."""
    from_t, from_s = answer_both(method, student, target, batch)
    renoising = Renoising(method.schedule, batch.e, batch.t, batch.epsilon)
    judged, fake = judge.judge(from_t, renoising, batch.cond)
    with torch.no_grad():
        real = judge.read(from_s, renoising, batch.cond)
    heads_losses(judge.heads, fake, real).mean().backward()
    return (compare(method, batch, from_t, from_s) + judged).mean()


def measure_activations(act: Callable[[], object]) -> int:
    """Returns the bytes of what `act` makes, at its worst moment."""
    live = LiveBytes()
    with live:
        act()
    return live.most


def _make_networks(
    config: Distill, family: Family
) -> tuple[Learner, Network, Judge | None, Schedule, list[nn.Module]]:  # fmt: skip
    """Returns what learns, its teacher, its judge if it has one, the schedule, and all that has weights; the base in
    bf16."""
    base, told_end = family.shaped_network(), METHODS[config.method].told_end
    if config.lora_rank:
        if quantisation := config.quantisation:
            # imported only where it is wanted
            importlib.import_module("fewstep.models.quantised").quantise(base, quantisation, torch.device("meta"))
        with torch.device("meta"):  # peft moves what it makes, which fake tensors do not allow
            if told_end:
                base.hang_end()
            adapted = AdaptedNetwork(
                base, config.lora_rank, float(config.lora_rank), family.lora.targets, torch.bfloat16
            )
        learner, learning = Learner(weights=adapted.weights, student=adapted.student), base
        teacher: Network = adapted.teacher
        alone = adapted.alone
        modules: list[nn.Module] = [base.backbone, adapted.weights]
    else:
        learning = family.shaped_network(few_step=True)
        if told_end:
            learning.hang_end()
        learning.requires_grad_(True)
        learner = learn_every_weight(learning, ema=config.ema_decay > 0, target_decay=config.second_decay)
        teacher = base.to(torch.bfloat16)
        alone = contextlib.nullcontext
        asked = [] if config.states == "trajectories" else [base.backbone]  # the teacher, where it is
        modules = [*asked, *filter(None, (learner.weights, learner.averaged, learner.target_average))]
    if config.gradient_checkpointing:
        learning.backbone.train()
        for each in (learning, base) if config.adversarial else (learning,):
            each.backbone.enable_gradient_checkpointing()
    judge = None
    if config.adversarial:
        with torch.device("meta"):
            judge = Judge(Heads(base.feature_widths), base, alone)
        modules.append(judge.heads)
    return learner, teacher, judge, base.schedule, modules


def _count_walkers(config: Distill, family: Family, side: int, schedule: Schedule) -> int:
    """Counts the bytes of the trajectories that walkers are on and have been on, in fp32."""
    if not config.has_walkers:
        return 0
    stops = len(find_stops(schedule, config.skip, config.phases or METHODS[config.method].phases))
    return 2 * 4 * config.batch_size * stops * family.released_latent_channels * side**2


def _make_batch(family: Family, side: int, count: int, *, kept: bool) -> TrainingBatch:
    latents = torch.randn(2, count, family.released_latent_channels, side, side)
    t = torch.zeros(count, dtype=torch.long)
    step = {"z_t": latents[0], "z_s": latents[1]} if kept else {}
    return TrainingBatch(latents[0], family.shaped_condition(count), t, t, t, latents[1], torch.zeros(count), **step)
