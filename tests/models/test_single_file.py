"""Single-file checkpoints and families, on miniatures of each."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from fewstep.commands.combine import Combine, combine
from fewstep.commands.distill import load_teacher
from fewstep.commands.inspect import describe
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.models import scenes_model
from fewstep.models.families.original_names import original_unet_names
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import Pair, read_lora, write_lora
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.recipes.distill import Distill
from fewstep.recipes.named import find_recipe
from miniatures import FAMILIES, save_miniature
from single_files import save_single_file

CPU = torch.device("cpu")
ADAPTED = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Of every family a folder, the same as one file, and the folder without its weights."""
    root = tmp_path_factory.mktemp("families")
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    found = {}
    for family in FAMILIES:
        folder = save_miniature(family, tokenizer, root / family)
        file = save_single_file(family, folder, root / f"{family}.safetensors")
        bare = shutil.copytree(folder, root / f"{family}-config", ignore=shutil.ignore_patterns("*.safetensors"))
        found[family] = folder, file, bare
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_same_model_as_its_folder(family, models):
    folder, file, config = models[family]
    one, other = load_latent_model(folder, CPU), load_latent_model(file, CPU, str(config))
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([599])
    cond = one.conditioner.encode(["a red star"])
    for mine, theirs in zip(one.parts.values(), other.parts.values(), strict=True):
        held, found = mine.state_dict(), theirs.state_dict()
        assert held.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in held.items())
    # rounding alone: the weights lie otherwise in memory
    for name, value in other.conditioner.encode(["a red star"]).items():
        torch.testing.assert_close(value, cond[name])
    answers = [model.network(z, t, cond, None).z_0 for model in (one, other)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.codec.decode(z), other.codec.decode(z), rtol=1e-4, atol=1e-4)
    for name, value in one.conditioner.null().items():
        torch.testing.assert_close(value, other.conditioner.null()[name])
    assert one.network.parameterisation == other.network.parameterisation
    assert one.family is other.family
    assert not any(p.requires_grad for part in other.parts.values() for p in part.parameters())


@pytest.mark.parametrize("ending", ["sft", "SAFETENSORS"])
def test_the_other_endings_of_safetensors_are_read(ending, models, tmp_path):
    _, file, config = models["sd15"]
    other = shutil.copy(file, tmp_path / f"model.{ending}")
    one, two = (load_latent_model(each, CPU, str(config)).network.backbone.state_dict() for each in (file, other))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert next(describe(tmp_path / f"model.{ending}")).startswith("single-file checkpoint: Stable Diffusion 1.x")


def test_families_and_their_names(models):
    found = {family: load_latent_model(models[family][0], CPU) for family in FAMILIES}
    assert [model.family.name for model in found.values()] == ["sd1", "sd2", "sd2", "sdxl"]
    assert [m.family.spec_architecture(m.network.parameterisation) for m in found.values()] == [
        "stable-diffusion-v1", "stable-diffusion-v2-512", "stable-diffusion-v2-768-v", "stable-diffusion-xl-v1-base",
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect_names_the_family_of_a_file(family, models):
    assert "single-file checkpoint: Stable Diffusion " in next(iter(describe(models[family][1])))


def test_without_configurations_and_offline_one_line_says_what_to_give(models):
    with pytest.raises(UserError, match="give --base-config") as caught:
        load_latent_model(models["sd15"][1], CPU)
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint(models, tmp_path):
    _, file, config = models["sd15"]
    flow, half = tmp_path / "flow.safetensors", tmp_path / "half.safetensors"
    safetensors.torch.save_file({"triple_blocks.0.img_attn.qkv.weight": torch.zeros(2)}, flow)
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({n: v for n, v in tensors.items() if not n.startswith("first_stage")}, half)
    hole = tmp_path / "hole.safetensors"
    safetensors.torch.save_file({n: v for n, v in tensors.items() if "decoder.conv_out.weight" not in n}, hole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-50])
    pickle = tmp_path / "model.ckpt"
    torch.save({}, pickle)
    cases = {
        flow: "begin with triple_blocks.0; known: single files of Stable Diffusion 1",
        half: "no tensor begins with first_stage_model.", hole: "it lacks first_stage_model.decoder.conv_out.weight",
        cut: "is damaged or not a safetensors file",
        pickle: "not a .safetensors file",
    }  # fmt: skip
    for path, said in cases.items():
        with pytest.raises(UserError, match=said):
            load_latent_model(path, CPU, str(config))
    with pytest.raises(UserError, match=r"is Stable Diffusion 1.x and --base-config .* is Stable Diffusion XL"):
        load_latent_model(file, CPU, str(models["sdxl"][2]))
    with pytest.raises(UserError, match="leave --base-config out"):
        load_latent_model(models["sd15"][0], CPU, str(config))
    with pytest.raises(UserError, match="is not there"):
        load_latent_model("gone.safetensors", CPU, str(config))


def test_an_inpainting_model_is_refused(models, tmp_path, edit_json):
    folder = shutil.copytree(models["sd15"][0], tmp_path / "nine")
    edit_json(folder / "unet" / "config.json", in_channels=9)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["conv_in.weight"] = torch.randn(8, 9, 3, 3)
    safetensors.torch.save_file(tensors, weights)
    with pytest.raises(UserError, match="inpainting"):
        load_latent_model(folder, CPU)


def test_a_config_older_than_guidance_inputs_makes_a_student(models, tmp_path):
    """Released models were saved before diffusers knew `time_cond_proj_dim`; their config.json does not hold it."""
    folder = shutil.copytree(models["sd15"][0], tmp_path / "old")
    file = folder / "unet" / "config.json"
    held = json.loads(file.read_text())
    del held["time_cond_proj_dim"]
    file.write_text(json.dumps(held))
    student = load_latent_model(folder, CPU).network.to_student(8)
    assert student.unet.config.time_cond_proj_dim == 256
    assert not student.unet.time_embedding.cond_proj.weight.any()


def test_a_recipe_for_another_family_is_refused(models):
    config = find_recipe("sdxl-lora")
    settings = {**vars(config), "teacher": str(models["sd15"][0]), "data": "scenes", "device": "cpu"}
    with pytest.raises(UserError, match=r"for the family sdxl and .* is of sd1"):
        load_teacher(Distill(**settings))
    load_teacher(Distill(**settings | {"family": "any"}))


def test_the_numbered_blocks_of_kohyas_sdxl_files(models, tmp_path):
    """`lora_unet_input_blocks_4_1_…`, as kohya's trainer writes them for SDXL alone."""
    model = load_latent_model(models["sdxl"][0], CPU)
    names = original_unet_names(name for name, _ in model.network.backbone.named_modules())
    assert names["down_blocks.1.attentions.0.proj_in"] == "input_blocks.3.1.proj_in"  # one layer a level here
    tensors, expected = {}, {}
    for name, module in model.network.backbone.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith("to_q"):
            spelt = f"lora_unet_{names[name].replace('.', '_')}"
            down, up = torch.randn(2, module.in_features), torch.randn(module.out_features, 2)
            tensors |= {f"{spelt}.lora_down.weight": down, f"{spelt}.lora_up.weight": up}
            tensors[f"{spelt}.alpha"] = torch.tensor(1.0)
            expected[f"unet.{name}"] = down
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    found = read_lora(tmp_path / "x.safetensors", model.parts, model.family.lora).pairs
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].down, down) and found[name].alpha == 1.0 for name, down in expected.items())


def test_what_is_combined_on_a_single_file_finds_its_configurations_again(models, tmp_path):
    """The LoRA's header keeps the base and its --base-config; a merged pipeline needs neither."""
    _, file, config = models["sd15"]
    model = load_latent_model(file, CPU, str(config))
    weight = model.network.backbone.get_submodule(ADAPTED).weight
    lora = {f"unet.{ADAPTED}": Pair(torch.randn(2, weight.shape[1]) / 4, torch.randn(weight.shape[0], 2) / 4, 2.0)}
    header = {"fewstep.method": "LCM-LoRA", "fewstep.original_inference_steps": "50", "fewstep.omega": "7.5"}
    write_lora(tmp_path / "lora", lora, header, model.parts, model.family.lora)
    settings = {"base": str(file), "base_config": str(config), "lora": (f"{tmp_path / 'lora'}:0.5",)}
    combine(Combine(**settings, out=tmp_path / "one"))
    combine(Combine(**settings, out=tmp_path / "merged", merged=True))
    shutil.rmtree(tmp_path / "lora")
    alone, merged = (load_pipeline(tmp_path / name, "cpu") for name in ("one", "merged"))
    expected = weight + 0.5 * lora[f"unet.{ADAPTED}"].up @ lora[f"unet.{ADAPTED}"].down
    torch.testing.assert_close(merged.model.network.backbone.get_submodule(ADAPTED).weight, expected)
    first, second = (np.asarray(pipe(["a red star"], steps=2)[0], dtype=int) for pipe in (alone, merged))
    assert np.abs(first - second).max() <= 2
