"""The caption task's answers and whether it teaches them; the diffusion task's loss on a network that is right."""

from types import SimpleNamespace

import torch
from torch import nn

from fewstep.data.worlds.scene import Scene, Thing
from fewstep.data.worlds.scenes import Scenes
from fewstep.diffusion.schedule import Schedule, Tabulated
from fewstep.models import scenes_model
from fewstep.teacher.tasks import STATED, CaptionTask, DiffusionTask, list_answers
from fewstep.train.config import LoopConfig
from fewstep.train.loop import fit


def test_answers_are_places_among_the_options_or_zero():
    said = Scene((Thing("circle", "pink", None), Thing("heart", "red", "large")), "above", None)
    assert list_answers(said) == [2, 0, 1, 8, 0, 8, 1, 2]
    assert list_answers(Scene((Thing("ring", "blue", "small"),), None, "black")) == [0, 3, 5, 6, 1, 0, 0, 0]


def test_the_text_encoder_learns_what_captions_state(tmp_path):
    captions, stated = zip(*(Scenes(seed=0).prompt(i) for i in range(1000)), strict=True)
    tokenizer = scenes_model.build_tokenizer(captions)
    tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
    torch.manual_seed(0)
    task = CaptionTask(scenes_model.build_text_encoder(tokenizer), tokens, STATED, [*map(list_answers, stated)], seed=0)
    wanted = torch.tensor([list_answers(scene) for scene in stated])

    fit(task, LoopConfig(steps=200, batch_size=64, lr=2e-3, warmup_steps=20, ema_decay=0.9), tmp_path, "text")
    with torch.no_grad():
        found = torch.stack([logits.argmax(1) for logits in task.logits(task.averaged, tokens)], dim=1)
    share = (found == wanted).float().mean(0)
    assert len(share) == len(STATED)
    assert share[0] > 0.95  # relation
    assert share[1] > 0.95  # background
    two = wanted[:, 0] > 0  # relation stated: a second thing to tell
    share = (found == wanted)[two].float().mean(0)
    assert share[5] > 0.4, share  # its shape; by chance 1/8


class RightNetwork(nn.Module):
    """Knows which z_0 each caption belongs to, so that v follows from z_t; without a caption it has no answer."""

    def __init__(self, schedule: Schedule, latents: torch.Tensor) -> None:
        super().__init__()
        self.schedule, self.latents = schedule, latents
        self.captions: list[torch.Tensor] = []
        self.times: list[torch.Tensor] = []

    def forward(self, z_t, t, text):
        caption = text[:, 0, 0].long()
        self.captions.append(caption)
        self.times.append(t)
        alpha, sigma = self.schedule.coefficients(t, z_t)
        v = (alpha * z_t - self.latents[caption.clamp(max=len(self.latents) - 1)]) / sigma
        return SimpleNamespace(sample=v)


def diffusion_task():
    torch.manual_seed(0)
    schedule = Tabulated.from_config(scenes_model.build_scheduler().config)
    latents = torch.randn(3, 2, 3, 3)
    text = torch.arange(4.0)[:, None, None]  # caption i says i; the last is the empty one
    return DiffusionTask(RightNetwork(schedule, latents), schedule, latents, text, seed=0)


def test_the_right_v_of_the_right_picture_has_no_loss(monkeypatch):
    monkeypatch.setattr(DiffusionTask, "DROP_RATE", 0.0)
    task = diffusion_task()
    assert task.loss(range(300)).total < 300 * 1e-6
    assert set(task.student.captions[0].tolist()) == {0, 1, 2}


def test_captions_are_dropped_at_the_stated_rate_and_large_t_drawn_more_often():
    task = diffusion_task()
    # Where the caption is missing the network names the wrong picture.
    assert task.loss(range(4000)).total > 4000 * 1e-3
    assert abs((task.student.captions[0] == 3).float().mean() - DiffusionTask.DROP_RATE) < 0.02
    times = task.student.times[0].double() / 1000
    assert abs(times.mean() - 2 / 3) < 0.02  # the mean of a density that grows linearly
    assert times.min() < 0.1
