"""What a distillation of a flow transformer computes, and which weights it moves."""

import math

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from fewstep.commands import distill as command
from fewstep.diffusion.solvers import SOLVERS
from fewstep.method.landing import BY_DDIM, ConsistencyFunction
from fewstep.models.family import LatentModel
from fewstep.models.lora.adapters import AdaptedNetwork
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from flow_loading import copy_model
from flow_runs import make_run

CPU = torch.device("cpu")
LORA = {"lora_rank": 3, "lora_alpha": 6.0}


def settings(flow, pictures, out, **changes):
    return Distill(**{
        "teacher": str(flow), "data": str(pictures), "out": out, "steps": 2, "batch_size": 2, "lr": 1e-2,
        "ema_decay": 0.5, "sample_every": 0, "device": "cpu", "guidance_range": (4.0, 4.0), "guidance_scale": 4.0,
        **changes,
    })  # fmt: skip


READ = {}


def first_loss(config, *, learns=True):
    """Of the first batch, and with its gradient where it `learns`; the teacher and the pictures that it encoded are
    read once."""
    if config.teacher not in READ:
        teacher = command.load_teacher(config)
        READ[config.teacher] = teacher, open_material(config, teacher).latents()
    kept, latents = READ[config.teacher]
    teacher = copy_model(kept)
    student = command.make_student(config, teacher)
    path = command.make_path(config, student, teacher)
    task = make_task(config, student, path, teacher, latents)
    with torch.set_grad_enabled(learns):
        loss = task.loss(range(config.batch_size)).total
    if learns:
        loss.backward()
    return loss.detach(), task, teacher


def moved(network):
    return {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_a_step_is_the_same_twice_and_moves_the_right_weights(kind, solver, flow, flow_pictures, tmp_path):
    config = settings(flow, flow_pictures, tmp_path, solver=solver, **(LORA if kind == "lora" else {}))
    (loss, task, teacher), (again, _, _) = first_loss(config), first_loss(config, learns=False)
    assert torch.isfinite(loss)
    assert torch.equal(loss, again)
    names = moved(task.student)
    assert names
    if kind == "lora":
        assert all("lora_" in name for name in names)
        learning = {name.split(".lora_")[0] for name, p in teacher.network.named_parameters() if p.requires_grad}
        ends = tuple(f".{target}" for target in teacher.family.lora.targets)
        modules = {
            name for name, module in teacher.network.backbone.named_modules()
            if name.endswith(ends) and hasattr(module, "weight")
        }  # fmt: skip
        assert {name.partition(".")[2] for name in learning} == {name for name in modules if ".lora_" not in name}
    frozen = [teacher.codec.autoencoder, *teacher.conditioner.encoders.values()]
    assert not any(p.requires_grad for module in frozen for p in module.parameters())


@pytest.mark.parametrize("method", ["pcm", "tcd", "guided-distill"])
@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_every_method_takes_a_step(kind, method, flow, flow_pictures, tmp_path):
    if method == "guided-distill" and copy_model(flow).family.guided_inside:
        method = "lcm"  # it has nothing to teach a network that is told its guidance
    config = settings(flow, flow_pictures, tmp_path, method=method, **(LORA if kind == "lora" else {}))
    loss, task, _ = first_loss(config)
    assert torch.isfinite(loss)
    assert moved(task.student)


def told(flow) -> tuple[LatentModel, AdaptedNetwork]:
    model = copy_model(flow)
    model.network.hang_end()
    return model, AdaptedNetwork(model.network, 2, 2.0, model.family.lora.targets, seed=0)


def test_the_teacher_is_not_told_the_end_and_stays_bit_for_bit(flow):
    plain, (model, adapted) = copy_model(flow), told(flow)
    z, t = torch.randn(2, *model.codec.shape(64)), torch.tensor([700, 300])
    cond = plain.conditioner.encode(["a red star", ""])
    with torch.no_grad():
        before = plain.network(z, t, cond, None)
        assert torch.equal(adapted.teacher(z, t, cond, None).z_0, before.z_0)
        student = adapted.student(z, t, cond | {"end": torch.tensor([200, 0])}, None)
        assert torch.allclose(student.z_0, before.z_0, atol=1e-6)  # which begins as its teacher
        for name, value in model.network.named_parameters():
            if ".end." in name and "linear_2" in name:
                value.normal_()
        one, other = (adapted.student(z, t, cond | {"end": torch.tensor([e, e])}, None).z_0 for e in (100, 250))
        assert (one - other).abs().max() > 1e-3  # and is told
        assert torch.equal(adapted.teacher(z, t, cond, None).z_0, before.z_0)


def test_the_end_learns_with_the_adapters(flow, flow_pictures, tmp_path):
    config = settings(flow, flow_pictures, tmp_path, method="any-step", skip=125, batch_size=8, **LORA)
    _, task, _ = first_loss(config)
    names = moved(task.student)
    assert any(".lora_B." in name or "lora_B" in name for name in names)
    assert any("end" in name and "linear_2" in name for name in names)


@pytest.mark.parametrize("t", [1, 400, 1000])
def test_a_jump_to_where_one_stands_leads_nowhere(t, flow):
    model = copy_model(flow)
    z, times = torch.randn(2, *model.codec.shape(64)), torch.full((2,), t)
    f = ConsistencyFunction(model.network, model.conditioner.encode(["a", "b"]), None, model.schedule, BY_DDIM)
    with torch.no_grad():
        assert torch.allclose(f(z, times, times), z, atol=1e-5)


def test_features_are_pictures_and_have_gradients(flow):
    model = copy_model(flow)
    z, t = torch.randn(2, *model.codec.shape(64), requires_grad=True), torch.tensor([700, 300])
    found = model.network.features(z, t, model.conditioner.encode(["a", "b"]))
    assert [each.shape[1] for each in found] == list(model.network.feature_widths)
    assert all(each.ndim == 4 and each.shape[2] == each.shape[3] for each in found)
    sum(each.square().mean() for each in found).backward()
    assert z.grad.abs().sum() > 0


def test_features_stand_where_their_pictures_do(flow):
    """A change of a corner of the latents is felt most in that corner of the first feature."""
    model = copy_model(flow)
    z = torch.randn(1, *model.codec.shape(64), generator=torch.Generator().manual_seed(0))
    changed, part = z.clone(), max(1, z.shape[-1] // 4)
    changed[..., :part, -part:] += 3
    cond, t = model.conditioner.encode(["a"]), torch.tensor([500])
    with torch.no_grad():
        one, other = (model.network.features(each, t, cond)[0] for each in (z, changed))
    felt = (one - other).abs().sum(1)[0]
    assert felt[0, -1] == felt.max()


def test_checkpointing_changes_nothing(flow, flow_pictures, tmp_path):
    plain = settings(flow, flow_pictures, tmp_path, **LORA)
    spared = settings(flow, flow_pictures, tmp_path, gradient_checkpointing=True, **LORA)
    (loss, one, _), (again, other, _) = first_loss(plain), first_loss(spared)
    assert torch.allclose(loss, again, rtol=1e-5)
    gradients = [
        {name: p.grad for name, p in task.student.named_parameters() if p.grad is not None} for task in (one, other)
    ]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(value, gradients[1][name], atol=1e-6) for name, value in gradients[0].items())


def test_a_shift_by_size_is_that_of_the_pictures_it_is_trained_on(flow, flow_pictures, tmp_path):
    """In training, and in what is exported."""
    config = settings(flow, flow_pictures, tmp_path / "run", resolution=32, **LORA)
    small, own = command.load_teacher(config), copy_model(flow)
    if not own.scheduler_config.get("use_dynamic_shifting"):
        assert small.schedule.shift == own.schedule.shift
        return
    tokens = (32 // own.codec.unit) ** 2
    if flow.name == "klein":
        mu = compute_empirical_mu(tokens, 50)
    else:
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        mu = calculate_shift(tokens, *(own.scheduler_config[name] for name in names))
    assert small.schedule.shift == pytest.approx(math.exp(mu), rel=1e-6)
    assert small.schedule.shift < own.schedule.shift
    exported = make_run(flow, flow_pictures, "small-lora").model
    assert load_pipeline(exported, "cpu").model.schedule.shift == small.schedule.shift


def test_what_is_told_already_is_told_anew(flow):
    """As a UNet is: the last embedding of the end is the one that counts."""
    network = copy_model(flow).network
    network.hang_end()
    assert network.hang_end() is network.time_embedding.end


@pytest.mark.parametrize("rank", [0, 3])
def test_none_computes_in_fp16(rank, flow, flow_pictures, tmp_path):
    """In which real ones overflow: neither what learns nor what is kept frozen, on a card without bf16 either."""
    config = settings(flow, flow_pictures, tmp_path, precision="fp16", lora_rank=rank)
    teacher = command.load_teacher(config)
    student = command.make_student(config, teacher)
    block, seen = teacher.network.blocks[0], set()
    block.register_forward_hook(lambda *told: seen.update(each.dtype for each in told[2] if torch.is_tensor(each)))
    cond = teacher.conditioner.encode(["a red star"])
    with torch.autocast("cpu", torch.float16):
        for network in (student.base, student.learner.student):
            answer = network(torch.randn(1, *teacher.codec.shape(64)), torch.tensor([500]), cond, torch.tensor([3.0]))
            assert answer.z_0.dtype == torch.float32
    assert {each.dtype for each in teacher.network.parameters()} == {torch.float32}
    assert seen <= {torch.float32}
