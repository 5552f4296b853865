"""Teachers' samplers against the closed-form PF-ODE of Gaussian data, on a flow, whose last step reaches σ = 0."""

import pytest
import torch

from closed_forms import Gaussian
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.multistep import sample_dpm_solver_pp_2m, sample_unipc
from fewstep.diffusion.sampling import sample_euler, sample_ode
from fewstep.diffusion.schedule import sampling_times

SAMPLERS = {
    "ddim": sample_ode, "euler": sample_euler, "dpm++": sample_dpm_solver_pp_2m, "unipc": sample_unipc,
}  # fmt: skip


def test_times_of_a_flow_stand_as_those_of_a_table_do():
    schedule = Flow(1000)
    assert sampling_times(schedule, 4, "trailing") == [1000, 750, 500, 250]
    assert sampling_times(schedule, 4, "leading") == [751, 501, 251, 1]
    assert sampling_times(schedule, 3, "linspace") == [1000, 500, 0]
    assert sampling_times(schedule, 2, "linspace+1") == [1000, 500]


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "linspace+1"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_leads_from_noise_alone_to_the_data(name, shift, spacing):
    schedule = Flow(1000, shift)
    mean, std = torch.tensor([[1.5, -0.5, 0.25], [0.3, 1.2, 0.7]], dtype=torch.float64)
    data = Gaussian(schedule, mean, std)
    z_T = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = data.flow(z_T, torch.full((32,), 1000), torch.zeros(32, dtype=torch.long))
    errors = []
    for count in (20, 100):
        z_0 = SAMPLERS[name](schedule, data, z_T, sampling_times(schedule, count, spacing))
        errors.append(float((z_0 - exact).square().mean().sqrt()))
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.03
