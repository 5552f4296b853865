"""A base held in 8 or 4 bits: what it answers, what adapters on it learn, what it takes, and what is refused."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewstep.commands.combine import Combine, combine
from fewstep.commands.distill import load_teacher, make_path, make_student
from fewstep.commands.train_lora import train_lora
from fewstep.errors import UserError
from fewstep.measure.stopwatch import LiveBytes
from fewstep.models.families.stable_diffusion import LORA
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import read_lora
from fewstep.models.network import hash_weights
from fewstep.models.quantised import BLOCK, QuantisedConv2d, QuantisedLinear, quantise
from fewstep.recipes.distill import Distill
from fewstep.recipes.finetune import Finetune
from fewstep.recipes.train_lora import TrainLora
from fewstep.runs.consistency import make_task
from fewstep.runs.learning import load_base
from fewstep.runs.material import open_material
from fewstep.train.loop import fit

CPU = torch.device("cpu")
ROUNDED = {"int8": 0.006, "nf4": 0.092}
"""How far weights drawn from a normal distribution are from what they were, of their norm."""
SETTINGS = {
    "device": "cpu", "batch_size": 4, "pictures": 16, "steps": 4, "log_every": 1, "checkpoint_every": 2,
    "guidance_range": (4.0, 4.0), "guidance_scale": 4.0, "lora_rank": 4, "sample_every": 0, "ema_decay": 0.5,
    "lr": 1e-3,
}  # fmt: skip


def layers():
    torch.manual_seed(0)
    return {
        "linear": (nn.Linear(128, 96), QuantisedLinear, torch.randn(2, 5, 128)),
        "convolution": (nn.Conv2d(32, 48, 3, stride=2, padding=1), QuantisedConv2d, torch.randn(2, 32, 9, 9)),
        "in groups": (nn.Conv2d(32, 64, 3, groups=4, bias=False), QuantisedConv2d, torch.randn(2, 32, 8, 8)),
    }


@pytest.mark.parametrize("bits", ["int8", "nf4"])
@pytest.mark.parametrize("name", layers())
def test_a_layer_answers_and_differentiates_as_a_plain_one_of_the_rounded_weight(name, bits):
    plain, kind, x = layers()[name]
    nn.init.normal_(plain.weight)
    quantised = kind(plain.requires_grad_(False), bits, CPU)
    assert isinstance(quantised, type(plain))
    apart = (quantised.weight - plain.weight).norm() / plain.weight.norm()
    assert apart == pytest.approx(ROUNDED[bits], rel=0.1)
    plain.weight.data = quantised.weight
    answers = []
    for layer in (plain, quantised):
        given = x.clone().requires_grad_()
        answer = layer(given)
        answer.square().sum().backward()
        answers.append((answer, given.grad))
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(other, one)
    with torch.autocast("cpu", torch.bfloat16):
        assert quantised(x).dtype == torch.bfloat16
        torch.testing.assert_close(quantised(x), plain(x))
    torch.testing.assert_close(quantised.double()(x.double()), plain.double()(x.double()))  # its scales stay exact


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_weight_is_not_kept_for_the_backward_pass(bits):
    """Autograd would keep all of the base that way, put together."""
    x = torch.randn(1, 256, requires_grad=True)
    stack = nn.Sequential(*(QuantisedLinear(nn.Linear(256, 256), bits, CPU) for _ in range(8)))
    live = LiveBytes()
    with live:
        stack(x).sum().backward()
    one = 256 * 256 * 4
    assert one < live.most < 2 * one


@pytest.mark.parametrize(("bits", "bytes_each"), [("int8", 1 + 4 / BLOCK), ("nf4", 0.5 + 4 / BLOCK)])
def test_the_blocks_of_a_network_are_held_in_few_bits(wide_teacher, bits, bytes_each):
    network = load_latent_model(wide_teacher, CPU).network
    before = [module for block in network.blocks for module in block.modules()]
    weights = sum(m.weight.numel() for m in before if type(m) in (nn.Linear, nn.Conv2d))
    rest = sum(p.nbytes for p in network.parameters()) - 4 * weights
    assert weights > 0.8 * sum(p.numel() for p in network.parameters())
    quantise(network, bits, CPU)
    held = sum(each.nbytes for each in (*network.parameters(), *network.buffers()))
    assert held == pytest.approx(rest + bytes_each * weights, rel=0.03)  # int8 has a table in every layer
    assert type(network.backbone.conv_in) is nn.Conv2d


def prepared(teacher, out, **changes):
    config = Distill(**SETTINGS | {"teacher": str(teacher), "out": out} | changes)
    model = load_teacher(config)
    student = make_student(config, model)
    latents = open_material(config, model).latents()
    return config, student, make_task(config, student, make_path(config, student, model), model, latents)


def gradients(out, precision):
    """Those of all adapters on the bundled teacher as one vector, where B is not zero any more."""
    _, student, task = prepared("scenes", out, frozen_precision=precision, precision="bf16")
    for name, value in student.learner.weights.by_name().items():
        if ".lora_B." in name:
            generator = torch.Generator().manual_seed(len(name))
            value.data.copy_(0.02 * torch.randn(value.shape, generator=generator))
    task.loss(range(4)).total.backward()
    return torch.cat([p.grad.flatten() for p in student.learner.weights.parameters()])


def test_gradients_of_adapters_are_those_on_a_base_in_bf16_within_a_tenth_and_three_tenths(tmp_path):
    """Those on a base in bf16 are 7% from those on one in fp32 themselves."""
    bf16 = gradients(tmp_path, "bf16")
    assert 0 < (gradients(tmp_path, "int8") - bf16).norm() < 0.1 * bf16.norm()
    assert 0.1 * bf16.norm() < (gradients(tmp_path, "nf4") - bf16).norm() < 0.3 * bf16.norm()


def learn(teacher, out, steps, **changes):
    config, student, task = prepared(teacher, out, **changes)
    fit(task, dataclasses.replace(config, steps=steps), out, "test")
    return student


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_a_run_goes_on_bit_for_bit_and_writes_a_lora_for_the_base_as_it_was(random_teacher, tmp_path, bits):
    changes = {"frozen_precision": bits, "gradient_checkpointing": bits == "nf4"}
    student = learn(random_teacher, tmp_path / "whole", 2, **changes)
    learn(random_teacher, tmp_path / "parts", 1, **changes)
    learn(random_teacher, tmp_path / "parts", 2, **changes)
    states = [
        load_file(tmp_path / run / "checkpoints/step-0000002/state.safetensors") for run in ("whole", "parts")
    ]  # fmt: skip
    assert states[0].keys() == states[1].keys()
    assert not [name for name in states[0] if "packed" in name]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value)
    student.save(tmp_path / "model")
    base = load_latent_model(random_teacher, CPU)
    assert student.card.teacher_sha256 == hash_weights(base.network.backbone)
    lora = f"{tmp_path / 'model' / 'pytorch_lora_weights.safetensors'}"
    combine(Combine(base=str(random_teacher), lora=(lora,), merged=True, out=tmp_path / "merged"))
    merged, name = load_latent_model(tmp_path / "merged", CPU), "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = base.network.backbone.get_submodule(name).weight
    (pair,) = (pair for key, pair in read_lora(Path(lora), base.parts, LORA).pairs.items() if key.endswith(name))
    delta = pair.up @ pair.down
    assert delta.any()
    torch.testing.assert_close(merged.network.backbone.get_submodule(name).weight, weight + delta, rtol=0, atol=1e-7)


def test_a_style_learns_on_a_base_in_few_bits(random_teacher, tmp_path):
    config = TrainLora(
        model=str(random_teacher), data="scenes", device="cpu", out=tmp_path, batch_size=2, pictures=4, steps=1,
        lora_rank=2, lr=1e-2, frozen_precision="nf4",
    )  # fmt: skip
    train_lora(config)
    (file,) = (tmp_path / "model").glob("pytorch_lora_weights.safetensors")
    assert any(value.any() for name, value in load_file(file).items() if "lora_B" in name)


@pytest.mark.parametrize("kind", [Distill, Finetune])
def test_it_is_refused_where_every_weight_learns(kind):
    with pytest.raises(UserError, match="every weight learns here; give --lora-rank"):
        kind(frozen_precision="nf4")


def test_it_is_refused_without_bitsandbytes_before_anything_is_loaded(random_teacher, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("fewstep.runs.learning.load_latent_model", lambda *_, **__: pytest.fail("it was loaded"))
    config = Distill(**SETTINGS, frozen_precision="int8", teacher=str(random_teacher))
    with pytest.raises(UserError, match=r"int8 needs bitsandbytes: pip install 'fewstep\[8bit\]'"):
        load_teacher(config)


def test_a_base_rests_in_main_memory_until_it_is_small(random_teacher, monkeypatch):
    """No more of it comes to the card than it holds there; `meta` stands for one."""
    monkeypatch.setattr("fewstep.runs.learning.pick_device", lambda _: torch.device("meta"))
    model = load_base(Distill(**SETTINGS, frozen_precision="nf4"), str(random_teacher))
    assert model.network.backbone.device == CPU
    assert (model.device.type, model.codec.autoencoder.device.type) == ("meta", "meta")
    quantise(model.network, "nf4", model.device)
    assert {each.device.type for each in (*model.network.parameters(), *model.network.buffers())} == {"meta"}
