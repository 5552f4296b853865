"""What no other family has: text that ends with the longest prompt, a last step that stands where it always does, and
names that alone tell what paints."""

import json
import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import save_file

from fewstep.errors import UserError
from fewstep.evaluate.cell import Cell, painter_of
from fewstep.models.flow_scheduler import read_flow
from fewstep.models.loading import load_latent_model
from fewstep.models.options import Overrides
from flow_loading import copy_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(make_flow):
    return make_flow("qwen")


def test_where_its_steps_end_is_said_once(folder, caplog):
    with caplog.at_level("INFO"):
        load_latent_model(folder, CPU).take_side(128)
    assert sum("ends its steps at σ = 0.02" in line for line in caplog.messages) == 1


def test_text_ends_with_the_longest_prompt_and_is_masked_where_one_is_shorter(folder):
    model, given = copy_model(folder), {}
    model.network.backbone.register_forward_pre_hook(
        lambda _module, _args, named: given.update(named), with_kwargs=True
    )
    z, t = torch.randn(2, 16, 8, 8), torch.tensor([700, 300])

    def ask(prompts, **changes):
        cond = model.conditioner.encode(prompts) | changes
        with torch.no_grad():
            return model.network(z[: len(prompts)], t[: len(prompts)], cond, None).z_0, cond

    long, short = ask(["a red star on a blue square"])[0], model.conditioner.encode(["a star"])
    assert given["encoder_hidden_states_mask"] is None
    both, cond = ask(["a red star on a blue square", "a star"])
    lengths = cond["mask"].sum(1).long().tolist()
    assert lengths[1] == int(short["mask"].sum()) < lengths[0] < 512
    assert given["encoder_hidden_states"].shape[1] == lengths[0]
    assert given["encoder_hidden_states_mask"].sum(1).tolist() == lengths
    assert torch.allclose(both[:1], long, atol=1e-5)
    spoilt = torch.where(cond["mask"][..., None] > 0, cond["text"], 7.0)
    assert torch.allclose(ask(["a red star on a blue square", "a star"], text=spoilt)[0], both, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Qwen-Image-Lightning-8steps", "is called lightning"), ("qwen_image_distill_full_fp8", "is called distill"),
        ("qwen_image_edit_2509_fp8", "edits pictures"), ("QwenImageEdit", "edits pictures"),
        ("Qwen-Image-Layered", "edits pictures or paints layers"), ("qwen_image_2512_bf16", None),
        ("unedited", None), ("Credits", None), ("my-undistilled-qwen", None),
    ],
)  # fmt: skip
def test_a_transformers_name_tells_whether_it_paints(name, said, folder, tmp_path):
    file = tmp_path / f"{name}.safetensors"
    own = copy_model(folder).network.backbone.state_dict()
    save_file({key: value.clone() for key, value in own.items()}, file)
    if said is None:
        load_latent_model(folder, CPU, overrides=Overrides(unet=str(file)))
        return
    with pytest.raises(UserError, match=said):
        load_latent_model(folder, CPU, overrides=Overrides(unet=str(file)))


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_a_baseline_stands_where_the_stock_pipelines_steps_do(steps, folder):
    """To half a time of a thousand; a stock pipeline has no answer in one step."""
    model, stood = copy_model(folder), []
    model.network.register_forward_pre_hook(lambda _module, given: stood.append(model.schedule.sigma(given[1])[0]))
    painter_of(Cell("euler", steps, "trailing", 1.0), model, None).latents(model.conditioner.encode(["a"]), [0])
    if steps == 1:
        assert stood == [1]
        return
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    stock.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], mu=math.log(model.schedule.shift))
    assert torch.allclose(torch.stack(stood).float(), stock.sigmas[:-1], atol=0.5e-3 * model.schedule.shift)
    assert float(stock.sigmas[-2]) == pytest.approx(0.02)


@pytest.mark.parametrize("last", ["three", 1, -0.5, float("nan")])
def test_an_odd_end_of_its_steps_is_refused(last):
    with pytest.raises(UserError, match="has shift_terminal"):
        read_flow({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": last}, "it", tokens=1)


def test_a_reader_whose_places_do_not_fill_its_heads_is_refused(copy_flow):
    folder = copy_flow("qwen")
    file = folder / "text_encoder" / "config.json"
    held = json.loads(file.read_text())
    held["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 1]}
    file.write_text(json.dumps(held))
    with pytest.raises(UserError, match=r"has mrope_section \[1, 1, 1\]"):
        load_latent_model(folder, CPU)
