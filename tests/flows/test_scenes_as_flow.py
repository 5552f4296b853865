"""The bundled teacher teaches a flow by a change of variables: the same share of noise, the state on another scale.

So what is trained on real pictures is distilled along a flow, by the code that flow transformers take.
"""

import dataclasses

import pytest
import torch

from fewstep import assets
from fewstep.commands.distill import make_path, make_student
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.sampling import sample_ode
from fewstep.diffusion.schedule import sampling_times
from fewstep.diffusion.solvers import SOLVERS
from fewstep.method.paths import TeacherPath
from fewstep.models.families.unet import UNetNetwork
from fewstep.models.loading import load_latent_model
from fewstep.models.pipeline import seeded_noise
from fewstep.recipes.named import find_recipe
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material

CPU, COUNT, SCALE = torch.device("cpu"), 8, 3.0
PROMPTS = [f"a {color} {shape}" for color in ("red", "blue") for shape in ("star", "circle", "square", "triangle")]


class FlowUNet(UNetNetwork):
    """z_t of a flow is z of the betas over α + σ, at the time of the same α/σ."""

    def __init__(self, unet, betas, parameterisation, pixels_per_latent, flow):
        super().__init__(unet, flow, parameterisation, pixels_per_latent)
        self.betas = betas

    def forward(self, z_t, t, cond, omega):
        own = self.betas.time_of_lam(self.schedule.lam(t))
        alpha, sigma = self.betas.coefficients(own, z_t)
        inner = UNetNetwork(self.unet, self.betas, self.parameterisation, self.pixels_per_latent)
        return inner(z_t * (alpha + sigma), own, cond, omega)

    def with_backbone(self, backbone):
        return FlowUNet(backbone, self.betas, self.parameterisation, self.pixels_per_latent, self.schedule)


@pytest.fixture(scope="module")
def teacher():
    model = load_latent_model(assets.scenes_teacher(), CPU)
    own = model.network
    flow = FlowUNet(own.unet, own.schedule, own.parameterisation, own.pixels_per_latent, Flow(shift=3.0))
    return dataclasses.replace(model, network=flow)


def solve(model, network, steps, solver):
    """Paints the guided teacher's latents of the prompts."""
    path = TeacherPath(network, network.schedule, model.null())
    field = path.field(model.conditioner.encode(PROMPTS), torch.full((COUNT,), SCALE - 1))
    z = seeded_noise(range(COUNT), model.codec.shape(model.resolution), CPU)()
    with torch.no_grad():
        return sample_ode(
            network.schedule, field, z, sampling_times(network.schedule, steps, "trailing"), SOLVERS[solver]
        )


@pytest.fixture(scope="module")
def fine(teacher):
    return solve(teacher, teacher.network, 25, "midpoint")


def test_the_flow_leads_where_the_betas_do(teacher, fine):
    own = UNetNetwork(teacher.network.unet, teacher.network.betas, teacher.network.parameterisation)
    other = solve(teacher, own, 25, "midpoint")
    assert (fine - other).square().mean().sqrt() < 0.1 * other.std()


def test_a_student_is_distilled_along_it(teacher, fine, tmp_path):
    """One answer from noise comes nearer to the end of the teacher's guided path."""
    config = dataclasses.replace(
        find_recipe("scenes"), out=tmp_path, steps=30, batch_size=8, sample_every=0, device="cpu", guided_from=0,
        guidance_range=(SCALE, SCALE), guidance_scale=SCALE, ema_decay=0.8, pictures=64, method="any-step", skip=250,
    )  # fmt: skip
    student = make_student(config, teacher)
    path = make_path(config, student, teacher)
    task = make_task(config, student, path, teacher, open_material(config, teacher).latents())
    network = student.learner.weights
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=5e-4)

    def distance():
        z = seeded_noise(range(COUNT), teacher.codec.shape(teacher.resolution), CPU)()
        t, cond = torch.full((COUNT,), 1000), teacher.conditioner.encode(PROMPTS)
        with torch.no_grad():
            end = {"end": torch.zeros(COUNT, dtype=torch.long)}
            answer = network(z, t, cond | end, torch.full((COUNT,), SCALE - 1)).z_0
        return float((answer - fine).square().mean().sqrt())

    before = distance()
    for update in range(config.steps):
        loss = task.loss(range(8 * update, 8 * update + 8)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distance() < 0.8 * before
