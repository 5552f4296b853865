"""The end's embedding beside adapters: off with them, learning with them, at their scale, in their file."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.errors import UserError
from fewstep.measure.memory import count_need
from fewstep.models.families import find_family
from fewstep.models.families.stable_diffusion import LORA
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.adapters import AdaptedNetwork
from fewstep.models.lora.file import DIFFUSERS_FILE, KOHYA_FILE, read_lora, write_lora
from fewstep.recipes.distill import Distill

CPU = torch.device("cpu")
Z, T = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([999, 259])
COND = {"text": torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(1))}
read_lora, write_lora = partial(read_lora, layout=LORA), partial(write_lora, layout=LORA)


def landing(e):
    return COND | {"end": torch.full((2,), e)}


@pytest.fixture
def network(wide_teacher):
    return load_latent_model(wide_teacher, CPU).network


def adapt(network, rank=4, name="default", frozen=torch.float32):
    """Hangs adapters on a network that is told the end; they and what embeds it do something."""
    if network.unet.class_embedding is None:
        network.hang_end()
    adapted = AdaptedNetwork(network, rank, float(rank), LORA.targets, frozen, name=name)
    with torch.no_grad():
        for i, value in enumerate(adapted.weights.parameters()):
            value.copy_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(i)))
    return adapted


def test_it_starts_as_the_teacher_and_is_it_bit_for_bit_when_off(network):
    before = network(Z, T, COND, None).z_0
    network.hang_end()
    fresh = AdaptedNetwork(network, 4, 4.0, LORA.targets)
    assert torch.equal(fresh.student(Z, T, landing(100), None).z_0, before)
    with torch.no_grad():
        for value in fresh.weights.parameters():
            value.add_(0.1)
    assert not torch.equal(fresh.student(Z, T, landing(100), None).z_0, before)
    with torch.no_grad():
        assert torch.equal(fresh.teacher(Z, T, COND, None).z_0, before)
        assert torch.equal(fresh.teacher(Z, T, landing(100), None).z_0, before)


@pytest.mark.parametrize(("rank", "pictures"), [(4, 1), (64, 8)])
def test_the_student_is_told_however_its_adapters_are_computed(network, rank, pictures):
    """Beside the weights, and summed with them first; only what learns gets a gradient, and all of it does."""
    adapted = adapt(network, rank)
    asked = (Z.repeat(pictures, 1, 1, 1), T.repeat(pictures), {"text": COND["text"].repeat(pictures, 1, 1)}, None)
    assert adapted._sums_first(asked[0]) == (rank == 64)
    near, far = (
        adapted.student(*asked[:2], asked[2] | {"end": torch.full((2 * pictures,), e)}, None).z_0 for e in (0, 900)
    )
    assert float((near - far).detach().abs().max()) > 1e-3
    with torch.no_grad():  # a teacher in between changes nothing
        adapted.teacher(*asked)
    (near - far).square().mean().backward()
    beside = [value for name, value in adapted.weights.by_name().items() if ".lora_" not in name]
    assert len(beside) == 4
    assert all(value.grad is not None and value.grad.any() for value in beside)
    assert all(value.grad is None for value in network.parameters() if not value.requires_grad)


def test_a_second_adapter_on_the_base_is_told_nothing_and_freezes_nothing(network):
    """As a fake score is hung: it answers as it would where there is no end."""
    plain = AdaptedNetwork(copy.deepcopy(network), 4, 4.0, LORA.targets, name="fake")
    adapted = adapt(network)
    student = adapted.student(Z, T, landing(100), None).z_0
    fake = adapt(network, name="fake")
    plain.weights.load_state_dict(fake.weights.state_dict())
    expected = plain.student(Z, T, COND, None).z_0
    for _ in range(2):
        assert torch.equal(fake.student(Z, T, COND, None).z_0, expected)
        assert torch.equal(adapted.student(Z, T, landing(100), None).z_0, student)
    assert not [name for name in fake.weights.by_name() if "class_embedding" in name]
    assert all(value.requires_grad for value in adapted.weights.parameters())


def test_an_average_brings_its_own_end(network):
    adapted = adapt(network)
    average, own = adapted.copy_of_weights(), adapted.student(Z, T, landing(100), None).z_0
    with torch.no_grad():
        for name, value in average.by_name().items():
            if ".lora_" not in name:
                value.mul_(2.0)
    with adapted.using(average):
        assert not torch.equal(adapted.student(Z, T, landing(100), None).z_0, own)
    assert torch.equal(adapted.student(Z, T, landing(100), None).z_0, own)


@pytest.mark.parametrize("frozen", [torch.float32, torch.bfloat16])
def test_checkpointing_recomputes_what_was_told(network, frozen):
    """The gradient is that of a pass that keeps everything, on a base of either format."""
    adapted = adapt(network, frozen=frozen)
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            network.unet.train()
            network.unet.enable_gradient_checkpointing()
        with torch.autocast("cpu", torch.bfloat16, enabled=frozen == torch.bfloat16):
            loss = adapted.student(Z, T, landing(100), None).z_0.square().mean()
            with torch.no_grad():
                adapted.teacher(Z, T, COND, None)
            gradients.append(torch.autograd.grad(loss, [*adapted.weights.parameters()]))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_file_holds_it_under_keys_of_its_own_and_nothing_else_is_written(network, tmp_path):
    adapted = adapt(network)
    pairs, end = adapted.pairs(adapted.weights), adapted.end(adapted.weights)
    parts = {"unet": network.unet}
    assert write_lora(tmp_path, pairs, {}, parts, end=end) == 0
    assert not (tmp_path / KOHYA_FILE).exists()
    keys = {key for key in load_file(tmp_path / DIFFUSERS_FILE) if not key.startswith("unet.")}
    assert keys == {f"fewstep_lora_end.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    found = read_lora(tmp_path / DIFFUSERS_FILE, parts)
    assert found.matched().endswith("; it tells its base where to land")
    assert all(torch.equal(found.end[name], value) for name, value in end.items())
    assert write_lora(tmp_path, pairs, {}, parts) == 0  # and without one as ever
    assert (tmp_path / KOHYA_FILE).exists()
    assert read_lora(tmp_path / DIFFUSERS_FILE, parts).end == {}


def test_a_file_is_hung_on_at_its_scale(network, wide_teacher):
    """Half the scale is half of what it adds to the time's embedding; merged, it is the same."""
    adapted = adapt(network)
    end = adapted.end(adapted.weights)
    hung = load_latent_model(wide_teacher, CPU).network
    features = torch.randn(2, hung.unet.time_embedding.linear_1.in_features)
    added = []
    for scale in (1.0, 0.5, 0.0):
        hung.load_end(end, "lora0", scale)
        added.append(hung.unet.class_embedding(features))
    torch.testing.assert_close(added[1], 0.5 * added[0])
    assert not added[2].any()
    hung.load_end(end, "lora0", 0.5)
    hung.unet.class_embedding.merge()
    torch.testing.assert_close(hung.unet.class_embedding(features), added[1])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda end: end.pop("fewstep_lora_end.linear_2.bias"), "does not fit this base: it holds fewstep_lora_end"),
        (lambda end: end.update({"fewstep_lora_end.linear_2.bias": torch.zeros(3)}), "does not fit this base"),
        (lambda end: end.update({"fewstep_lora_end.gate": torch.zeros(1)}), "does not fit this base"),
        (lambda end: end["fewstep_lora_end.linear_1.bias"].fill_(float("nan")), "fewstep_lora_end.linear_1.bias"),
    ],
)
def test_what_does_not_fit_is_named(spoil, said, network, tmp_path):
    adapted = adapt(network)
    parts = {"unet": network.unet}
    write_lora(tmp_path, adapted.pairs(adapted.weights), {}, parts, end=adapted.end(adapted.weights))
    tensors = load_file(tmp_path / DIFFUSERS_FILE)
    spoil(tensors)
    save_file(tensors, tmp_path / DIFFUSERS_FILE)
    with pytest.raises(UserError, match=said):
        read_lora(tmp_path / DIFFUSERS_FILE, parts)


def test_plans_count_it():
    """A time MLP of 32 to 128 to 128 learns beside the adapters, and is told the end in the update that is counted."""
    small = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 4,
             "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
    family = dataclasses.replace(find_family("sd1"), unet=small)
    config = Distill(lora_rank=4, batch_size=2, guidance_range=(5.0, 5.0), ema_decay=0.0, method="any-step")
    network = family.shaped_network()
    with torch.device("meta"):
        adapters = AdaptedNetwork(network, 4, 4.0, LORA.targets).weights
    own = 32 * 128 + 128 + 128 * 128 + 128
    assert count_need(config, family, 8).learning == own + sum(value.numel() for value in adapters.parameters())
