"""A flow's schedule, DDIM and renoising on it equal those of diffusers' flow-matching schedulers of static shift."""

import itertools

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from torch import Tensor

from fewstep.diffusion.flow import Flow
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.sampling import sample_euler, sample_ode
from fewstep.diffusion.schedule import sampling_times

SHAPE = (2, 4, 8, 8)


def velocity(z: Tensor, t: Tensor) -> Tensor:
    """A smooth, nonlinear network of z and 1000·σ."""
    time = t.to(z.dtype).reshape(-1, 1, 1, 1) / 1000
    return torch.sin(1.3 * z + 2 * time) + 0.3 * z.roll(1, dims=1) * torch.cos(time) - 0.1


def toy_field(schedule: Flow):
    """ẑ_0 = z − σ·v and ε̂ = z + (1 − σ)·v, as v = ε − z_0."""

    def field(z, t):
        v = velocity(z, 1000 * schedule.sigma(t))
        alpha, sigma = schedule.coefficients(t, z)
        return Prediction(z - sigma * v, z + alpha * v)

    return field


def trailing(scheduler, count: int):
    """As FluxPipeline and others hand a grid to their scheduler."""
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / count, count, dtype=torch.float64).tolist())
    return scheduler


def initial_noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shift", [1.0, 1.73, 3.0, 6.0])
def test_sigmas(shift):
    whole = torch.arange(1000, 0, -1)
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    torch.testing.assert_close(Flow(1000, shift).sigma(whole), theirs.sigmas.double(), rtol=3e-7, atol=0)
    torch.testing.assert_close(1000 * Flow(1000, shift).sigma(whole), theirs.timesteps.double(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 20, 50])
def test_sigmas_of_sampling(count, shift):
    times = torch.tensor([*sampling_times(Flow(1000, shift), count, "trailing"), 0])
    theirs = trailing(FlowMatchEulerDiscreteScheduler(shift=shift), count)
    torch.testing.assert_close(Flow(1000, shift).sigma(times), theirs.sigmas.double(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("sampler", [sample_ode, sample_euler])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 50])
def test_ddim_is_euler(count, shift, sampler):
    """Both of ours end where there is no noise left: DDIM at time 0, Euler in the last ẑ_0."""
    schedule = Flow(1000, shift)
    scheduler = trailing(FlowMatchEulerDiscreteScheduler(shift=shift), count)
    theirs = initial_noise()
    for t in scheduler.timesteps:
        theirs = scheduler.step(velocity(theirs, t), t, theirs, return_dict=False)[0]
    ours = sampler(schedule, toy_field(schedule), initial_noise(), sampling_times(schedule, count, "trailing"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_consistency_sampling_renoises_as_flow_match_lcm_does(count, shift):
    schedule = Flow(1000, shift)
    scheduler = trailing(FlowMatchLCMScheduler(shift=shift), count)
    theirs_from, ours_from = (torch.Generator().manual_seed(3) for _ in range(2))
    times = [*schedule.grid(count).flip(0).tolist(), 0]
    ours = theirs = initial_noise()
    for (t, s), timestep in zip(itertools.pairwise(times), scheduler.timesteps, strict=True):
        theirs = scheduler.step(velocity(theirs, timestep), timestep, theirs, generator=theirs_from).prev_sample
        z_0 = toy_field(schedule)(ours, torch.full((2,), t)).z_0
        ours = schedule.diffuse(z_0, torch.randn(SHAPE, generator=ours_from), torch.full((2,), s))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
