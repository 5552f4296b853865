"""Schedules, solvers, samplers and the ω embedding equal those of diffusers on the same inputs."""

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    TCDScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import Tensor

from closed_forms import SD_CONFIG
from fewstep.diffusion.multistep import sample_dpm_solver_pp_2m, sample_unipc
from fewstep.diffusion.prediction import to_prediction
from fewstep.diffusion.sampling import sample_euler, sample_ode
from fewstep.diffusion.schedule import Schedule, Tabulated, sampling_times
from fewstep.method.landing import BY_DDIM, ConsistencyFunction, boundary
from fewstep.method.omega_embedding import embed_omega
from fewstep.method.sampling import sample_consistency
from fewstep.method.times import consistency_times, edges, jump_times

SHAPE = (2, 4, 8, 8)
CONFIGS = {
    "SD": SD_CONFIG,
    "DDPM": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000},
}


def toy_output(z: Tensor, t: Tensor | int) -> Tensor:
    """A smooth, nonlinear network that mixes channels and depends on time."""
    time = torch.as_tensor(t, dtype=z.dtype).reshape(-1, 1, 1, 1) / 1000
    return torch.sin(1.3 * z + 2 * time) + 0.3 * z.roll(1, dims=1) * torch.cos(time) - 0.1


def toy_network(schedule: Schedule, kind: str):
    def network(z, t, cond, omega):  # noqa: ARG001
        return to_prediction(kind, toy_output(z, t), z, *schedule.coefficients(t, z))

    return network


def toy_field(schedule: Schedule, kind: str):
    network = toy_network(schedule, kind)
    return lambda z, t: network(z, t, {}, None)


def initial_noise() -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sample_with(scheduler, z: Tensor, **kwargs) -> Tensor:
    """diffusers' loop: every scheduler's `step` at every one of its timesteps."""
    for t in scheduler.timesteps:
        z = scheduler.step(toy_output(z, t), t, z, **kwargs, return_dict=False)[0]
    return z


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest value, because ε-prediction multiplies by 1/α(999) = 15."""
    assert ours.abs().max() > 0.1
    error = (ours.double() - theirs.double()).abs().max() / theirs.abs().max()
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("zero_terminal", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_schedule(name, zero_terminal):
    """diffusers multiplies betas up in fp32, and its cosine has β = 0.999 at the end."""
    config = CONFIGS[name] | {"rescale_betas_zero_snr": zero_terminal}
    theirs = DDIMScheduler(**config).alphas_cumprod.double()
    ours = Tabulated.from_config(config).alphas.square()
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-7)
    signal = theirs > 1e-3
    torch.testing.assert_close(ours[signal], theirs[signal], rtol=3e-5, atol=0)


def test_schedule_reads_what_a_scheduler_saves():
    scheduler = DDIMScheduler(**SD_CONFIG, rescale_betas_zero_snr=True)
    assert Tabulated.from_config(scheduler.config).has_zero_terminal_snr


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 10, 20, 25, 30, 33, 40, 50, 100, 500])
def test_ddim_times(spacing, count, sd_schedule):
    scheduler = DDIMScheduler(**SD_CONFIG, timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0)
    scheduler.set_timesteps(count)
    assert sampling_times(sd_schedule, count, spacing) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 10, 20, 33, 50])
def test_dpm_solver_times(spacing, count, sd_schedule):
    scheduler = DPMSolverMultistepScheduler(
        **SD_CONFIG, timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0
    )
    scheduler.set_timesteps(count)
    assert sampling_times(sd_schedule, count, f"{spacing}+1") == scheduler.timesteps.tolist()


KINDS = [("epsilon", False), ("v_prediction", False), ("sample", False), ("v_prediction", True), ("sample", True)]
"""Parameterisations, without and with zero-terminal SNR, where ε has no answer."""


@pytest.mark.parametrize(("kind", "zero_terminal"), KINDS)
@pytest.mark.parametrize("count", [1, 4, 10, 50])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim(spacing, count, kind, zero_terminal):
    scheduler = DDIMScheduler(
        **SD_CONFIG, rescale_betas_zero_snr=zero_terminal, timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0, set_alpha_to_one=False, clip_sample=False, prediction_type=kind,
    )  # fmt: skip
    scheduler.set_timesteps(count)
    schedule = Tabulated.from_config(scheduler.config)
    times = sampling_times(schedule, count, spacing)
    ours = sample_ode(schedule, toy_field(schedule, kind), initial_noise(), times)
    # ε̂ from ẑ_0 divides by σ, and in the fp32 table 1 − ᾱ(1) is good to 3e-5 only, rescaled to 4e-5.
    from_z_0 = 4e-5 if zero_terminal else 3e-5
    assert_same(ours, sample_with(scheduler, initial_noise()), from_z_0 if kind == "sample" else 1e-5)


@pytest.mark.parametrize("count", [4, 10, 50])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_with_linspace(count, kind, sd_schedule):
    """DDIMScheduler strides T // n from linspace times, off its own grid; the first-order DPM-Solver++, which is
    DDIM, does not. Its last time here is 0, where nothing is left to do."""
    times = sampling_times(sd_schedule, count, "linspace")
    scheduler = DPMSolverMultistepScheduler(
        **SD_CONFIG, algorithm_type="dpmsolver++", solver_order=1, final_sigmas_type="sigma_min", prediction_type=kind
    )
    scheduler.set_timesteps(timesteps=times)
    schedule = Tabulated.from_config(scheduler.config)
    ours = sample_ode(schedule, toy_field(schedule, kind), initial_noise(), times)
    assert_same(ours, sample_with(scheduler, initial_noise()))


def assert_sampler_is(sampler, scheduler, count: int, kind: str) -> None:
    """At the scheduler's own times."""
    scheduler.set_timesteps(count)
    schedule = Tabulated.from_config(scheduler.config)
    ours = sampler(schedule, toy_field(schedule, kind), initial_noise(), scheduler.timesteps.tolist())
    assert_same(ours, sample_with(scheduler, initial_noise()))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 14, 15, 20, 50])
def test_dpm_solver_pp_2m(count, kind):
    scheduler = DPMSolverMultistepScheduler(
        **SD_CONFIG, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", lower_order_final=True,
        timestep_spacing="trailing", prediction_type=kind,
    )  # fmt: skip
    assert_sampler_is(sample_dpm_solver_pp_2m, scheduler, count, kind)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("count", [4, 8, 50])
def test_dpm_solver_pp_2m_with_zero_terminal_snr_is_the_limit(count, kind):
    """There diffusers puts ᾱ(T) = 2⁻²⁴ for 0 and so keeps a history, whose weight depends on that number; ours has none
    to lean on at λ = −∞, and is what smaller and smaller ᾱ(T) lead to."""
    config = SD_CONFIG | {"rescale_betas_zero_snr": True, "prediction_type": kind, "timestep_spacing": "trailing"}
    scheduler = DPMSolverMultistepScheduler(**config, final_sigmas_type="zero", lower_order_final=True)
    scheduler.set_timesteps(count)
    exact = Tabulated.from_config(config)
    times = sampling_times(exact, count, "trailing")
    ours = sample_dpm_solver_pp_2m(exact, toy_field(exact, kind), initial_noise().double(), times)
    assert torch.isfinite(ours).all()
    errors = []
    for power in (24, 240, 1000):
        alpha_bars = exact.alphas.square()
        alpha_bars[-1] = 2.0**-power
        near = Tabulated.from_alpha_bars(alpha_bars)
        found = sample_dpm_solver_pp_2m(near, toy_field(near, kind), initial_noise().double(), times)
        if power == 24:
            assert_same(found, sample_with(scheduler, initial_noise()))
        errors.append(float((found - ours).abs().max() / ours.abs().max()))
    assert errors[2] < errors[1] < errors[0] < 0.05
    assert errors[2] < 2e-3


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 20, 50])
def test_unipc(count, spacing, kind):
    scheduler = UniPCMultistepScheduler(
        **SD_CONFIG, solver_order=2, solver_type="bh2", final_sigmas_type="zero", timestep_spacing=spacing,
        prediction_type=kind,
    )  # fmt: skip
    assert_sampler_is(sample_unipc, scheduler, count, kind)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 50])
def test_euler(count, kind):
    scheduler = EulerDiscreteScheduler(**SD_CONFIG, timestep_spacing="trailing", prediction_type=kind)
    scheduler.set_timesteps(count)
    schedule = Tabulated.from_config(scheduler.config)
    z = initial_noise() / float(schedule.alphas[-1])  # theirs is z/α, and its noise level σ/α
    for t in scheduler.timesteps:
        z = scheduler.step(toy_output(scheduler.scale_model_input(z, t), t), t, z, return_dict=False)[0]
    times = [int(t) for t in scheduler.timesteps]
    assert_same(sample_euler(schedule, toy_field(schedule, kind), initial_noise(), times), z)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_unipc_from_zero_terminal_snr_is_finite_and_near_the_ode(kind):
    exact = Tabulated.from_config(SD_CONFIG | {"rescale_betas_zero_snr": True})
    field, noise = toy_field(exact, kind), initial_noise().double()
    fine = sample_ode(exact, field, noise, sampling_times(exact, 1000, "trailing"))
    errors = [
        float((sample_unipc(exact, field, noise, sampling_times(exact, count, "trailing")) - fine).abs().mean())
        for count in (8, 50)
    ]
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.1


@pytest.mark.parametrize("grid_size", [20, 33, 50])
def test_consistency_times(grid_size, sd_schedule):
    scheduler = LCMScheduler(**SD_CONFIG, original_inference_steps=grid_size)
    for count in range(1, grid_size + 1):
        scheduler.set_timesteps(count)
        assert consistency_times(sd_schedule, grid_size, count) == scheduler.timesteps.tolist(), count


@pytest.mark.parametrize("count", [0, 51])
def test_neither_samples_with_more_steps_than_the_grid(count, sd_schedule):
    with pytest.raises(ValueError, match=f"steps is {count}"):
        consistency_times(sd_schedule, 50, count)
    with pytest.raises((ValueError, ZeroDivisionError)):
        LCMScheduler(**SD_CONFIG, original_inference_steps=50).set_timesteps(count)


def test_boundary():
    scheduler = LCMScheduler(**SD_CONFIG)
    for time in (0, 1, 19, 259, 999):
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(time)
        ours = [float(c) for c in boundary(torch.tensor(time, dtype=torch.float64))]
        assert ours == pytest.approx([float(c) for c in theirs], rel=1e-12, abs=0)


@pytest.mark.parametrize(("kind", "zero_terminal"), KINDS)
@pytest.mark.parametrize("grid_size", [20, 50])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_consistency_sampling(count, grid_size, kind, zero_terminal):
    scheduler = LCMScheduler(
        **SD_CONFIG, original_inference_steps=grid_size, prediction_type=kind, rescale_betas_zero_snr=zero_terminal
    )
    scheduler.set_timesteps(count)
    theirs_from, ours_from = (torch.Generator().manual_seed(3) for _ in range(2))

    def draw(generator=ours_from) -> Tensor:
        return torch.randn(SHAPE, generator=generator)

    theirs = sample_with(scheduler, draw(theirs_from), generator=theirs_from)
    schedule = Tabulated.from_config(scheduler.config)
    times = consistency_times(schedule, grid_size, count)
    ours = sample_consistency(ConsistencyFunction(toy_network(schedule, kind), {}, None, schedule), times, draw)
    assert ours.dtype == theirs.dtype == torch.float32
    assert_same(ours, theirs)


def pipelines_embedding(omega: Tensor, width: int) -> Tensor:
    return LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, omega, embedding_dim=width)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_jumps(count, gamma, sd_schedule):
    """TCD's sampler; at γ = 1, where it adds noise to what stands at timestep 0, ours adds it to what is clean."""
    scheduler = TCDScheduler(**SD_CONFIG)
    scheduler.set_timesteps(count, original_inference_steps=50)
    theirs_from, ours_from = (torch.Generator().manual_seed(3) for _ in range(2))

    def draw(generator=ours_from) -> Tensor:
        return torch.randn(SHAPE, generator=generator)

    theirs = sample_with(scheduler, draw(theirs_from), generator=theirs_from, eta=gamma)
    _, ends = jump_times(sd_schedule, count, gamma)
    f = ConsistencyFunction(toy_network(sd_schedule, "epsilon"), {}, None, sd_schedule, BY_DDIM)
    ours = sample_consistency(f, scheduler.timesteps.tolist(), draw, ends=ends)
    assert_same(ours, theirs)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
def test_phases_begin_where_trailing_ddim_lands(count, sd_schedule):
    scheduler = DDIMScheduler(**SD_CONFIG, timestep_spacing="trailing")
    scheduler.set_timesteps(count)
    assert edges(sd_schedule, count).tolist() == [0, *reversed(scheduler.timesteps.tolist()[1:])]
    assert edges(sd_schedule, count).tolist()[1:] == [round(1000 * j / count) - 1 for j in range(1, count)]
    assert jump_times(sd_schedule, count)[0] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("width", [256, 64])
def test_omega_embedding(width):
    omega = torch.tensor([0.0, 0.37, 1.0, 2.0, 3.14159, 5.0, 7.0, 7.5, 8.5, 13.0, 14.0])
    torch.testing.assert_close(embed_omega(omega, width), pipelines_embedding(omega, width), rtol=0, atol=1e-6)


def test_pipelines_default_guidance_scale_is_omega_7_5():
    parameters = inspect.signature(LatentConsistencyModelPipeline.__call__).parameters
    assert parameters["guidance_scale"].default - 1 == 7.5


@pytest.fixture(scope="module")
def unet() -> Callable[[Tensor | None], Tensor]:
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=4, time_cond_proj_dim=256,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    z, text = torch.randn(SHAPE), torch.randn(2, 3, 8)

    @torch.no_grad()
    def run(timestep_cond: Tensor | None) -> Tensor:
        return network(z, torch.tensor([999, 259]), text, timestep_cond=timestep_cond).sample

    run.network = network
    return run


def test_omega_embedding_inside_a_unet(unet):
    omega = torch.tensor([7.5, 13.0])
    ours = unet(embed_omega(omega))
    torch.testing.assert_close(ours, unet(pipelines_embedding(omega, 256)), rtol=0, atol=1e-6)
    off_by_one = unet(embed_omega(omega + 1))
    assert (off_by_one - ours).abs().flatten(1).max(1).values.min() > 1e-4


def test_a_unet_whose_omega_projection_is_zero_is_the_teacher(unet):
    projection = unet.network.time_embedding.cond_proj
    assert projection.bias is None
    saved = projection.weight.detach().clone()
    try:
        torch.nn.init.zeros_(projection.weight)
        assert torch.equal(unet(embed_omega(torch.tensor([7.5, 13.0]))), unet(None))
    finally:
        projection.weight.data.copy_(saved)


def test_ours_is_more_exact_than_the_fp32_table():
    """Why tables are float64: diffusers' fp32 product drifts from the same product in float64."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    exact = torch.from_numpy(np.cumprod(1 - betas))
    ours = Tabulated.from_config(SD_CONFIG).alphas.square()
    theirs = DDIMScheduler(**SD_CONFIG).alphas_cumprod.double()
    assert ((ours - exact) / exact).abs().max() < 1e-12
    assert ((theirs - exact) / exact).abs().max() > 1e-8
