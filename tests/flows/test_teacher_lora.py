"""A style that is merged into a teacher before it is distilled."""

import json
import shutil

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from fewstep.commands.distill import distill, load_teacher
from fewstep.errors import UserError
from fewstep.files import read_safetensors_header
from fewstep.models.card import LORA_FILE, read_card
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.export import spell
from fewstep.models.lora.file import write_lora
from fewstep.models.lora.pair import Pair
from fewstep.models.network import hash_weights
from fewstep.models.options import Overrides, read_overrides
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes.distill import Distill
from flow_loading import copy_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def style(flow, tmp_path_factory):
    model, folder = copy_model(flow), tmp_path_factory.mktemp("style")
    layout, generator = model.family.lora, torch.Generator().manual_seed(0)
    ends = tuple(f".{target}" for target in layout.targets)
    pairs = {}
    for name, module in model.network.backbone.named_modules():
        if name.endswith(ends) and isinstance(module, torch.nn.Linear):
            rows, columns = module.weight.shape
            down, up = (0.2 * torch.randn(shape, generator=generator) for shape in ((2, columns), (rows, 2)))
            pairs[f"{layout.part}.{name}"] = Pair(down, up, 2.0)
    write_lora(folder, pairs, {"fewstep.method": "style"}, model.parts, layout)
    return folder / LORA_FILE


def settings(flow, pictures, out, **changes):
    return Distill(**{
        "teacher": str(flow), "data": str(pictures), "out": out, "steps": 2, "batch_size": 2, "lr": 1e-3,
        "ema_decay": 0.0, "sample_every": 0, "device": "cpu", "guidance_range": (4.0, 4.0), "guidance_scale": 4.0,
        "lora_rank": 2, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def distilled(flow, style, flow_pictures, tmp_path_factory):
    """A LoRA of the base with the style at half its scale."""
    out = tmp_path_factory.mktemp("run") / "run"
    distill(settings(flow, flow_pictures, out, base_lora=(f"{style}:0.5",)))
    return out / "model"


def test_a_style_is_distilled_with_its_base(flow, style, distilled, flow_pictures, tmp_path):
    given = f"{style}:0.5"
    teacher = load_teacher(settings(flow, flow_pictures, tmp_path, base_lora=(given,)))
    plain = copy_model(flow)
    assert hash_weights(teacher.network.backbone) != hash_weights(plain.network.backbone)
    header = read_safetensors_header(distilled / LORA_FILE).metadata
    assert json.loads(header["fewstep.base_lora"]) == [given]
    assert header["fewstep.teacher_sha256"] == hash_weights(teacher.network.backbone)
    mine = load_pipeline(distilled, "cpu")
    beside = load_pipeline(str(flow), "cpu", [(style, 0.5), (distilled / LORA_FILE, 1.0)])
    alone = load_pipeline(str(flow), "cpu", [(distilled / LORA_FILE, 1.0)])
    cond = mine.model.conditioner.encode(["a red star"])
    one, two, other = (pipe.latents(cond, [3], 3, 0.0) for pipe in (mine, beside, alone))
    assert torch.allclose(one, two, atol=1e-4)
    assert (one - other).abs().max() > 1e-2


def test_the_lines_of_the_card_hang_the_style_on_too(distilled):
    lines = (distilled / "README.md").read_text().split("```")[1].removeprefix("python")
    held = {}
    exec(lines.replace("this folder", str(distilled)), held)
    assert held["pipe"].get_active_adapters() == ["style0", "few_step"]
    layer = next(module for module in held["pipe"].transformer.modules() if isinstance(module, LoraLayer))
    assert [layer.scaling[name] for name in ("style0", "few_step")] == [0.5, 1.0]


def test_a_whole_student_has_it_in_its_weights(flow, style, flow_pictures, tmp_path):
    distill(settings(flow, flow_pictures, tmp_path / "run", base_lora=(f"{style}:0.5",), lora_rank=0, lr=1e-12))
    assert read_card(tmp_path / "run" / "model").base_lora == (f"{style}:0.5",)
    merged = load_latent_model(flow, CPU, overrides=Overrides(base_lora=(f"{style}:0.5",)))
    student = load_latent_model(tmp_path / "run" / "model", CPU)
    theirs = student.network.backbone.state_dict()
    assert all(
        torch.allclose(value, theirs[name], atol=1e-6) for name, value in merged.network.backbone.state_dict().items()
    )


def test_the_record_reads_back_and_refuses_what_is_none():
    said = Overrides(base_lora=("a.safetensors:0.5", "b"))
    assert read_overrides({name: spell(value) for name, value in said.stated().items()}) == said
    assert read_overrides({"base_lora": ["a"]}).base_lora == ("a",)
    for odd in ("{", "[1]", [None]):
        with pytest.raises(UserError, match="expected a list of LoRAs"):
            read_overrides({"base_lora": odd})


def test_a_header_does_not_choose_what_is_fetched(distilled, tmp_path):
    file = shutil.copytree(distilled, tmp_path / "model") / LORA_FILE
    tensors, metadata = load_file(file), read_safetensors_header(file).metadata
    for where in ("some/where", "some/where/deep/style.safetensors"):
        save_file(tensors, file, metadata | {"fewstep.base_lora": f'["{where}:0.5"]'})
        with pytest.raises(UserError, match=f"names {where}, which is not here and would be fetched"):
            load_pipeline(tmp_path / "model", "cpu")
