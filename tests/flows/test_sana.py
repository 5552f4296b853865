"""What SANA alone has: latents without a distribution, an instruction before prompts, positions of a size."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel
from safetensors.torch import save_file

from fewstep.commands.distill import distill
from fewstep.errors import UserError
from fewstep.models.families.sana import INSTRUCTION, NAMES
from fewstep.models.flow_scheduler import read_flow
from fewstep.models.loading import load_latent_model
from fewstep.models.options import Overrides
from fewstep.recipes.distill import Distill
from flow_loading import copy_model, copy_stock

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sana(make_flow):
    return make_flow("sana")


def test_its_latents_have_no_deviation(sana):
    model = copy_model(sana)
    mean, std = model.codec.encode(torch.rand(2, 3, 64, 96))
    assert mean.shape == std.shape == (2, 32, 2, 3)
    assert not std.any()
    assert model.codec.unit == 32
    with pytest.raises(UserError, match="no tiny decoder knows"):
        model.codec.with_tiny_decoder(None)


def test_prompts_are_read_after_an_instruction_and_the_empty_condition_is_not(sana):
    text = copy_model(sana).conditioner
    assert INSTRUCTION.endswith("User Prompt: ")
    assert text.null()["mask"].sum() == 1  # of its begin alone
    assert text.encode([""])["mask"].sum() == 2  # and of the instruction's end
    assert all(torch.equal(one, other) for one, other in zip(
        text.encode(["  A Red Star"]).values(), text.encode(["a red star"]).values(), strict=True
    ))  # fmt: skip
    whole = "z" * text.limit
    assert (text.count_tokens("zz"), text.count_tokens(whole + "z")) == (2, 298)
    assert [text.truncates(prompt) for prompt in (whole, whole + "z")] == [False, True]
    assert torch.equal(text.encode([whole])["text"], text.encode([whole + "z"])["text"])


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_solver_states_a_flow_where_it_is_told_to(kind):
    said = {"_class_name": kind, "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 2.5}
    assert read_flow(said, "it", tokens=1).shift == 2.5
    for change in ({"use_flow_sigmas": False}, {"prediction_type": "epsilon"}):
        with pytest.raises(UserError, match=f"has a {kind} around the network of a flow"):
            read_flow(said | change, "it", tokens=1)


def test_positions_are_those_of_the_teacher_at_every_size(copy_flow, flow_pictures, edit_json, tmp_path):
    """A student keeps the size by which they are counted, and its card says its own."""
    folder = copy_flow("sana")
    edit_json(folder / "transformer" / "config.json", interpolation_scale=1.0, sample_size=4)
    teacher = load_latent_model(folder, CPU)
    assert teacher.resolution == 128
    distill(Distill(
        teacher=str(folder), data=str(flow_pictures), out=tmp_path / "run", steps=1, batch_size=2, lr=1e-12,
        ema_decay=0.0, sample_every=0, device="cpu", guidance_range=(4.0, 4.0), guidance_scale=4.0, resolution=64,
    ))  # fmt: skip
    student = load_latent_model(tmp_path / "run" / "model", CPU)
    assert (student.resolution, student.network.backbone.config.sample_size) == (64, 4)
    z, t, cond = torch.randn(1, *teacher.codec.shape(64, 96)), torch.tensor([500]), teacher.conditioner.encode(["a"])
    one, other = (model.network(z, t, cond, None).z_0 for model in (teacher, student))
    assert torch.allclose(one, other, atol=1e-5)
    edit_json(folder / "transformer" / "config.json", sample_size=2)
    assert not torch.allclose(one, load_latent_model(folder, CPU).network(z, t, cond, None).z_0, atol=1e-3)


def test_normalised_queries_are_read_by_the_first_codes_names(sana):
    """As SANA 1.5 has them."""
    settings = dict(copy_model(sana).network.backbone.config)
    transformer = SanaTransformer2DModel.from_config(settings | {"qk_norm": "rms_norm_across_heads"})
    shapes = {name: tuple(value.shape) for name, value in transformer.state_dict().items()}
    held = NAMES.list_tensors(shapes)
    assert {f"blocks.0.{each}_norm.weight" for each in ("attn.q", "attn.k", "cross_attn.q", "cross_attn.k")} < held
    fused = 3 + 4  # q, k and v are one, and k and v of the text, which have biases
    assert len(held) == len(shapes) - settings["num_layers"] * (fused - 3)


def test_sprint_is_no_teacher_and_a_student_may_be_called_so(copy_flow, tmp_path):
    base = copy_flow("sana")
    file = tmp_path / "sana_sprint_1600m.safetensors"
    save_file({"blocks.0.mlp.inverted_conv.conv.weight": torch.ones(1)}, file)
    with pytest.raises(UserError, match="is SANA-Sprint"):
        load_latent_model(base, CPU, overrides=Overrides(unet=str(file)))
    index = json.loads((base / "model_index.json").read_text()) | {"_class_name": "SanaSprintPipeline"}
    (base / "model_index.json").write_text(json.dumps(index))
    config = json.loads((base / "transformer" / "config.json").read_text()) | {"guidance_embeds": True}
    (base / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is SANA-Sprint"):
        load_latent_model(base, CPU)


def test_pictures_of_other_sides_are_the_stock_pipelines(sana):
    pipe = copy_stock(sana)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.set_progress_bar_config(disable=True)
    mine = copy_model(sana)
    z, cond = torch.randn(1, *mine.codec.shape(64, 96)), mine.conditioner.encode(["a red star"])
    given = {"height": 64, "width": 96, "use_resolution_binning": False, "guidance_scale": 1.0, "latents": z}
    theirs = pipe("a red star", sigmas=[1.0], output_type="latent", **given).images
    assert theirs.shape == z.shape
    assert torch.allclose(mine.network(z, torch.tensor([1000]), cond, None).z_0, theirs, atol=1e-4)
