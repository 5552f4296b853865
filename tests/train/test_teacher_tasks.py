"""The caption task's answers and whether it teaches them; the diffusion task's loss on a network that is right."""

import torch
from torch import nn

from fewstep.data.scenes import Scene, Scenes, Thing
from fewstep.diffusion.schedule import Schedule
from fewstep.models import scenes_model
from fewstep.train.config import LoopConfig
from fewstep.train.loop import fit
from fewstep.train.teacher_tasks import STATED, CaptionTask, DiffusionTask, answers


def test_answers_are_places_among_the_options_or_zero():
    said = Scene((Thing("circle", "pink", None), Thing("heart", "red", "large")), "above", None)
    assert answers(said) == [2, 0, 1, 8, 0, 8, 1, 2]
    assert answers(Scene((Thing("ring", "blue", "small"),), None, "black")) == [0, 3, 5, 6, 1, 0, 0, 0]


def test_the_text_encoder_learns_what_captions_state(tmp_path):
    captions, stated = zip(*(Scenes(seed=0).prompt(i) for i in range(1000)), strict=True)
    tokenizer = scenes_model.build_tokenizer(captions)
    tokens = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
    torch.manual_seed(0)
    task = CaptionTask(scenes_model.build_text_encoder(tokenizer), tokens, stated, seed=0)
    wanted = torch.tensor([answers(scene) for scene in stated])

    @torch.no_grad()
    def share_right() -> torch.Tensor:
        found = torch.stack([logits.argmax(1) for logits in task.logits(task.averaged, tokens)], dim=1)
        return (found == wanted).float().mean(0)

    fit(task, LoopConfig(steps=150, batch_size=64, lr=3e-3, warmup_steps=20, ema_decay=0.9), tmp_path, "text")
    share = dict(zip(range(len(STATED)), share_right().tolist(), strict=True))
    assert share[0] > 0.95  # relation
    assert share[1] > 0.95  # background
    assert min(share.values()) > 0.5, share


class RightNetwork(nn.Module):
    """Knows the one z_0 of its training set, so that v follows from z_t."""

    def __init__(self, schedule: Schedule, z_0: torch.Tensor, text: torch.Tensor) -> None:
        super().__init__()
        self.schedule, self.z_0, self.text = schedule, z_0, text
        self.seen: list[torch.Tensor] = []
        self.times: list[torch.Tensor] = []

    def forward(self, z_t, t, text):
        self.seen.append(text)
        self.times.append(t)
        alpha, sigma = self.schedule.coefficients(t, z_t)
        self.sample = (alpha * z_t - self.z_0) / sigma
        return self


def test_the_right_v_has_no_loss_and_captions_are_dropped_at_the_stated_rate():
    schedule = Schedule.from_config(scenes_model.build_scheduler().config)
    z_0, text = torch.randn(1, 2, 3, 3), torch.tensor([[[1.0]], [[0.0]]])
    task = DiffusionTask(RightNetwork(schedule, z_0, text), schedule, z_0, text, seed=0)
    assert task.loss(range(4000)) < 1e-6
    network = task.student
    assert abs((network.seen[0] == 0).float().mean() - DiffusionTask.DROP_RATE) < 0.02
    times = network.times[0].double() / schedule.num_steps
    assert abs(times.mean() - 2 / 3) < 0.02  # the mean of a density that grows linearly
    assert times.min() < 0.1
