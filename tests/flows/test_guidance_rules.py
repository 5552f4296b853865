"""A family's own rule of guidance, wherever a teacher is guided; plain where it has none."""

import pytest
import torch

from fewstep.commands.distill import load_teacher, make_path, make_student
from fewstep.diffusion.schedule import sampling_times
from fewstep.evaluate.baselines import sample_teacher
from fewstep.method.paths import TeacherPath
from fewstep.models.families.packing import pack, unpack
from fewstep.models.pipeline import seeded_noise
from fewstep.recipes.distill import Distill
from flow_loading import copy_model

CPU, OMEGA = torch.device("cpu"), 3.0


def velocity(answer):
    return answer.epsilon - answer.z_0


def expect(model, z_t, t, cond, omega):
    """Returns the guided velocity as stock pipelines compute it."""
    null = model.null()
    with torch.no_grad():
        if null is None:
            return velocity(model.network(z_t, t, cond, omega))
        null = {name: value.expand(len(z_t), *value.shape[1:]) for name, value in null.items()}
        plain, empty = (velocity(model.network(z_t, t, each, None)) for each in (cond, cond | null))
    w = omega.view(-1, 1, 1, 1)
    guided = (1 + w) * plain - w * empty
    if not model.family.rescales_guidance:
        return guided
    tokens, lengths = pack(guided), pack(plain).norm(dim=-1, keepdim=True)
    return unpack(tokens * lengths / tokens.norm(dim=-1, keepdim=True), *z_t.shape[-2:])


def ask(model, count=3):
    z_t = torch.randn(count, *model.codec.shape(64), generator=torch.Generator().manual_seed(0))
    return z_t, torch.tensor([1000, 600, 20][:count]), model.conditioner.encode(["a red star", "a", "blue"][:count])


@pytest.mark.parametrize("rank", [0, 2])
def test_the_teacher_of_a_training_follows_it(rank, flow, flow_pictures, tmp_path):
    config = Distill(
        teacher=str(flow), data=str(flow_pictures), out=tmp_path, device="cpu", guidance_range=(4.0, 4.0),
        guidance_scale=4.0, lora_rank=rank, guided_from=0,
    )  # fmt: skip
    teacher, same = load_teacher(config), copy_model(flow)
    path = make_path(config, make_student(config, teacher), teacher)
    z_t, t, cond = ask(same)
    omega = torch.full((3,), OMEGA)
    with torch.no_grad():
        found = velocity(path.field(cond, omega)(z_t, t))
    assert torch.allclose(found, expect(same, z_t, t, cond, omega), atol=1e-5)


def test_a_baseline_follows_it(flow):
    model = copy_model(flow)
    cond = model.conditioner.encode(["a red star"])
    z_t, t = seeded_noise([5], model.codec.shape(model.resolution), CPU)(), torch.tensor([1000])
    found = sample_teacher(model, "euler", sampling_times(model.schedule, 1, "trailing"), cond, [5], OMEGA)
    assert torch.allclose(found, z_t - expect(model, z_t, t, cond, torch.tensor([OMEGA])), atol=1e-5)


def test_it_changes_nothing_where_nothing_guides(flow):
    """Bit for bit: of ω = 0, and before its interval begins."""
    model = copy_model(flow)
    if model.family.guided_inside:
        return
    z_t, t, cond = ask(model)
    with torch.no_grad():
        path = TeacherPath(model.network, model.schedule, model.null(), guided_from=500, rescale=model.rescale)
        plain = TeacherPath(model.network, model.schedule, model.null(), guided_from=500)
        for omega in (torch.zeros(3), torch.tensor([OMEGA, 0.0, OMEGA])):
            ruled, unruled = (each.field(cond, omega)(z_t, t) for each in (path, plain))
            still = [i for i in range(3) if not omega[i] or t[i] < 500]
            assert all(torch.equal(one[still], other[still]) for one, other in zip(ruled, unruled, strict=True))
