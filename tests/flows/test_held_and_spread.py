"""A transformer held in 8 or 4 bits, spread over processes or compiled: each family has parts of its own for it."""

import contextlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from fewstep.models.card import LORA_FILE
from fewstep.models.compiling import compile_blocks
from fewstep.models.families import flow_family
from fewstep.models.quantised import QuantisedConv2d, QuantisedLinear, quantise
from fewstep.parallel import world
from flow_loading import copy_model, load_shared
from flow_miniatures import TRANSFORMERS
from flow_runs import distil, make_run, run_here
from ranks import run_ranks

CPU = torch.device("cpu")
LORA = ("--lora-rank", 3)
ALIKE = ("--ema-decay", 0, "--distribution", "fsdp")


@pytest.fixture(params=TRANSFORMERS)
def model(request, make_flow):
    return copy_model(make_flow(request.param))


@pytest.fixture
def _follows_blocks(monkeypatch):
    """Has dynamo follow every block and keeps what it found as it is: seconds in place of minutes."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: compile_module(module, backend="eager"))
    torch._dynamo.reset()


@torch.no_grad()
def answer(model):
    draw = torch.Generator().manual_seed(0)
    z_t = torch.randn(2, *model.codec.shape(64), generator=draw)
    cond = model.conditioner.encode(["a red star", "a"])
    return model.network(z_t, torch.tensor([700, 300]), cond, torch.tensor([3.0, 3.0])).z_0


def count(modules):
    return sum(module.weight.numel() for module in modules)


@pytest.mark.parametrize(("bits", "off"), [("int8", 0.03), ("nf4", 0.4)])
def test_its_blocks_are_held_in_few_bits_and_answer_nearly_the_same(bits, off, model):
    whole, blocks = answer(model), nn.ModuleList(model.network.blocks)
    weights = count(each for each in blocks.modules() if type(each) in (nn.Linear, nn.Conv2d))
    quantise(model.network, bits, CPU)
    held = count(each for each in blocks.modules() if isinstance(each, QuantisedLinear | QuantisedConv2d))
    assert held > 0.95 * weights
    assert 0 < (answer(model) - whole).norm() < off * whole.norm()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_adapters_learn_on_a_base_in_4_bits(name, make_flow, flow_pictures, tmp_path):
    for bits in ("nf4", "int8") if name == "sd3" else ("nf4",):
        said = distil(make_flow(name), flow_pictures, tmp_path / bits, *LORA, "--frozen-precision", bits)
        assert "largest difference 0" in said
        learnt = load_file(tmp_path / bits / "model" / LORA_FILE)
        assert any(value.any() for key, value in learnt.items() if "lora_B" in key)


RUNS = dict.fromkeys(TRANSFORMERS, ("whole", "lora")) | {
    "sd3": ("whole", "lora", "any-step", "judged"), "qwen": ("whole", "lora", "judged", "ddp")
}  # fmt: skip
"""What is distilled of each family by two processes: of sd3 all, and of qwen, some of whose weights have no gradient,
what exchanges gradients by DDP."""


def options(kind):
    return {
        "whole": (), "lora": LORA, "any-step": ("--method", "any-step", "--skip", 125),
        "judged": (*LORA, "--adversarial", 0.5, "--gradient-checkpointing"),
        "ddp": ("--distribution", "ddp"),  # in place of that of ALIKE
    }[kind]  # fmt: skip


def distil_all(flows, pictures, folder):
    """Is run in every process, which are joined already."""
    flow_family.load_weights = load_shared
    world.join_world = lambda **_: contextlib.nullcontext(world.current_world())
    for name, flow in flows.items():
        for kind in RUNS[name]:
            distil(flow, pictures, folder / name / kind, *ALIKE, *options(kind))


def read_losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_with_a_part_each_learn_what_one_does(make_flow, flow_pictures, tmp_path):
    flows = {name: make_flow(name) for name in TRANSFORMERS}
    run_ranks(2, distil_all, flows, flow_pictures, tmp_path / "two")
    for name, flow in flows.items():
        for kind in RUNS[name]:
            one, two = (tmp_path / number / name / kind for number in ("one", "two"))
            distil(flow, flow_pictures, one, *ALIKE, *options(kind))
            assert read_losses(two) == pytest.approx(read_losses(one), rel=1e-3), name
            written = [
                sorted(file.relative_to(run) for file in run.rglob("model/**/*.safetensors")) for run in (one, two)
            ]
            assert written[0] == written[1]
            for file in written[0]:
                shapes = [{key: each.shape for key, each in load_file(run / file).items()} for run in (one, two)]
                assert shapes[0] == shapes[1]


@pytest.mark.usefixtures("_follows_blocks")
def test_its_blocks_are_compiled_and_answer_the_same(model):
    plain = answer(model)
    torch._dynamo.utils.counters.clear()
    compile_blocks([model.network], "blocks", CPU, torch.float32)
    assert torch.equal(answer(model), plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.usefixtures("_follows_blocks")
def test_one_is_trained_and_painted_compiled(make_flow, flow_pictures, tmp_path):
    flow, learnt = make_flow("sd3"), {}
    for how in ("off", "blocks"):
        distil(flow, flow_pictures, tmp_path / how, *LORA, "--compile", how)
        learnt[how] = load_file(tmp_path / how / "model" / LORA_FILE)
    for key, value in learnt["off"].items():
        torch.testing.assert_close(learnt["blocks"][key], value, rtol=1e-4, atol=1e-5)
    model, painted = make_run(flow, flow_pictures, "small-whole").model, []
    for how in ("off", "blocks"):
        out = tmp_path / f"painted-{how}"
        run_here("generate", "--model", model, "--prompt", "a red star", "--steps", 2, "--compile", how, "--out", out)
        (picture,) = out.iterdir()
        painted.append(np.asarray(Image.open(picture), dtype=int))
    assert np.abs(painted[0] - painted[1]).max() <= 1
