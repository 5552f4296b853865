"""Blocks that torch.compile computes: what they are, that they compute the same, and where there can be none."""

import copy
import logging
import re

import pytest
import torch
import torch._inductor.config
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from fewstep.commands.bench_train import Ours
from fewstep.commands.generate import Generate
from fewstep.diffusion.schedule import Tabulated
from fewstep.errors import UserError
from fewstep.measure.stopwatch import Stopwatch
from fewstep.models import compiling
from fewstep.models.compiling import check_compile, compile_blocks, name_attention
from fewstep.models.families.unet import UNetNetwork
from fewstep.models.loading import load_latent_model
from fewstep.recipes.distill import Distill
from fewstep.runs import compiling as training

CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""How close what is compiled comes to what is not, in fp32."""


@pytest.fixture
def network():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2,
    )  # fmt: skip
    return UNetNetwork(unet, Tabulated.from_config({}), "epsilon")


@pytest.fixture
def _compiles_nothing(monkeypatch):
    """Has dynamo follow every block and keeps what it found as it is: seconds in place of minutes."""
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: compile_module(module, backend="eager"))
    torch._dynamo.reset()


def answer(network, seed=0):
    draw = torch.Generator().manual_seed(seed)
    z_t, text = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 5, 16, generator=draw)
    return network(z_t, torch.tensor([10, 500]), {"text": text}, None).epsilon


@pytest.mark.usefixtures("_compiles_nothing")
def test_each_kind_of_block_is_compiled_once_and_the_time_is_told(network, caplog):
    before = answer(network)
    names = list(network.state_dict())
    with caplog.at_level(logging.INFO, logger="fewstep"):
        compile_blocks([network], "blocks", CPU, torch.float32)
        assert torch.equal(answer(network), before)
        assert list(network.state_dict()) == names
        assert torch.equal(answer(network), before)
    compiled = [line for line in caplog.messages if line.startswith("compiled")]
    assert len(compiled) == 1  # at the first call alone
    graphs = int(re.fullmatch(r"compiled (\d+) graphs in \d+\.\d s", compiled[0])[1])
    assert 0 < graphs < len(network.repeated_blocks)
    assert "attention: flash (heads of 4, 8)" in caplog.messages or "attention: flash (heads of 8)" in caplog.messages
    assert copy.deepcopy(network).repeated_blocks[0]._compiled_call_impl is None  # a copy is computed as ever


def test_what_is_compiled_computes_the_same(monkeypatch):
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # no processes for one graph
    torch._dynamo.reset()
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=8, groups=4, temb_channels=8)
    given, time = torch.randn(1, 8, 4, 4), torch.randn(1, 8)
    with torch.no_grad():
        wanted = block(given, time)
        block.compile()
        found = block(given, time)
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("changes", [{"ema_decay": 0.9}, {"lora_rank": 4, "guidance_range": (5.0, 5.0)}], ids=str)
def test_a_training_learns_the_same(random_teacher, monkeypatch, changes):
    """Its student, target and teacher are all computed by the blocks, whatever gradients and adapters there are."""
    losses, compiled = {}, []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: compiled.append(module))
    for how in ("off", "blocks"):
        config = Distill(
            teacher=str(random_teacher), batch_size=2, pictures=2, lr=1e-3, device="cpu", compile=how, **changes
        )
        ours = Ours(config, load_latent_model(random_teacher, CPU), Stopwatch(CPU))
        ours.update()
        losses[how] = float(ours.losses[0])
        assert bool(compiled) == (how == "blocks")
    assert losses["off"] == losses["blocks"]
    networks = 1 if config.lora_rank else 3  # student, average and teacher
    assert len(compiled) == len(set(map(id, compiled))) == 15 * networks


def test_where_nothing_can_be_compiled_it_is_said(monkeypatch):
    with pytest.raises(UserError, match="records CUDA graphs, and this is a CPU; give --compile blocks"):
        check_compile("graphs", CPU)
    with pytest.raises(UserError, match="for a CPU or an NVIDIA GPU and this is mps"):
        check_compile("blocks", torch.device("mps"))
    with pytest.raises(UserError, match="--engine openvino compiles by itself; leave --compile blocks out"):
        Generate(prompt=("a",), engine="openvino", compile="blocks")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler and there is no no-such-compiler; install one"):
        check_compile("blocks", CPU)
    check_compile("off", CPU)
    monkeypatch.setenv("CC", "sh")
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs triton on a GPU"):
        check_compile("blocks", torch.device("cuda"))


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(training, "current_world", lambda: type("World", (), {"size": 2}))
    with pytest.raises(UserError, match="--compile is for one process"):
        training.check_training("blocks", CPU)


def test_attention_is_named_for_every_width_of_a_head(network):
    assert name_attention(network, CPU, torch.float32).startswith("flash (heads of ")
