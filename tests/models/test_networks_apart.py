"""A UNet that stands apart from its model, as a repository or a file, and models that lie in the Hub's cache."""

import shutil

import pytest
import safetensors.torch
import torch
from loading_refused import refusal

from fewstep.errors import UserError
from fewstep.models.families.original_names import original_unet_names
from fewstep.models.loading import load_codec, load_latent_model
from fewstep.models.options import Overrides
from fewstep.models.pipeline import Pipeline
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.models.recognising import recognise
from hub_cache import put_in_cache

CPU = torch.device("cpu")


def test_a_unet_of_its_own_takes_its_bases_place(copy, miniatures, tmp_path):
    base = miniatures["sd15"][0]
    student = load_latent_model(base, CPU).network.to_student(8).backbone
    student.save_pretrained(tmp_path / "alone", variant="fp16")
    without = copy()
    (without / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    model = load_latent_model(without, CPU, overrides=Overrides(unet=str(tmp_path / "alone")))
    assert Pipeline(model).takes_guidance
    assert model.card.name == "alone"
    again = load_latent_model(miniatures["sd15"][1], CPU, str(base), Overrides(unet=str(tmp_path / "alone")))
    for found in (model, again):
        held = found.network.backbone.state_dict()
        assert all(torch.equal(held[name], value) for name, value in student.state_dict().items())
    other = miniatures["sdxl"][0]
    assert "holds no UNet of Stable Diffusion XL" in refusal(other, overrides=Overrides(unet=str(tmp_path / "alone")))
    assert "is neither a file nor a folder nor a Hub id" in refusal(base, overrides=Overrides(unet="gone"))


@pytest.mark.parametrize("prefix", ["", "unet.", "model.diffusion_model."])
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_a_unet_that_is_a_file_takes_its_bases_place(family, prefix, miniatures, tmp_path):
    base, whole = miniatures[family]
    wanted = load_latent_model(base, CPU).network.backbone.state_dict()
    begin = "model.diffusion_model."
    spelt = {
        "original": {
            name.removeprefix(begin): value
            for name, value in safetensors.torch.load_file(whole).items()
            if name.startswith(begin)
        },
        "diffusers": {name: value.half() for name, value in wanted.items()},
    }
    for spelling, tensors in spelt.items():
        file = tmp_path / f"{spelling}.safetensors"
        safetensors.torch.save_file({prefix + name: value for name, value in tensors.items()}, file)
        for place, config in ((base, ""), (whole, str(base))):
            model = load_latent_model(place, CPU, config, Overrides(unet=str(file)))
            held = model.network.backbone.state_dict()
            exact = wanted if spelling == "original" else {name: value.half() for name, value in wanted.items()}
            assert held.keys() == wanted.keys()
            assert all(torch.equal(held[name], value.float()) for name, value in exact.items())
        assert f"is a UNet alone, without text encoders and autoencoder; {_ADVICE}" in refusal(file)
    tensors.popitem()
    safetensors.torch.save_file(tensors, file)
    assert "it lacks " in refusal(base, overrides=Overrides(unet=str(file)))


_ADVICE = "give its base as the model, and with it --unet "


def test_a_unets_file_says_what_it_was_trained_on(miniatures, tmp_path):
    base = miniatures["sd15"][0]
    student = load_latent_model(base, CPU).network.to_student(8).backbone
    file = tmp_path / "lcm.safetensors"
    student = {name: value.contiguous() for name, value in student.state_dict().items()}
    for tensors, said in (({"v_pred": torch.zeros(1)}, None), ({}, {"modelspec.prediction_type": "v"})):
        safetensors.torch.save_file({**student, **tensors}, file, said)
        model = load_latent_model(base, CPU, overrides=Overrides(unet=str(file)))
        assert Pipeline(model).takes_guidance
        assert model.network.parameterisation == "v_prediction"
    safetensors.torch.save_file({"x.weight": torch.zeros(1)}, file)
    assert "holds no UNet, by diffusers' names or" in refusal(base, overrides=Overrides(unet=str(file)))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_few_step_unet_by_the_original_names_keeps_its_guidance(family, miniatures, tmp_path):
    base = miniatures[family][0]
    student = load_latent_model(base, CPU).network.to_student(8).backbone
    torch.nn.init.normal_(student.time_embedding.cond_proj.weight)
    originals = original_unet_names(name for name, _ in student.named_modules())
    wanted, spelt = student.state_dict(), {}
    for name, value in wanted.items():
        module, _, end = name.rpartition(".")
        spelt[f"model.diffusion_model.{originals.get(module, module)}.{end}"] = value.contiguous()
    file = tmp_path / "lcm.safetensors"
    safetensors.torch.save_file(spelt, file)
    model = load_latent_model(base, CPU, overrides=Overrides(unet=str(file)))
    assert Pipeline(model).takes_guidance
    held = model.network.backbone.state_dict()
    assert held.keys() == wanted.keys()
    assert all(torch.equal(held[name], value) for name, value in wanted.items())


def test_a_unets_file_says_it_over_a_base_that_is_a_file_too(miniatures, tmp_path):
    base, whole = miniatures["sd15"]
    tensors = load_latent_model(base, CPU).network.backbone.state_dict()
    file = tmp_path / "v.safetensors"
    safetensors.torch.save_file({**tensors, "v_pred": torch.zeros(1)}, file)
    model = load_latent_model(whole, CPU, str(base), Overrides(unet=str(file)))
    assert model.network.parameterisation == "v_prediction"


def test_what_a_unets_file_lacks_is_named_as_the_file_would(miniatures, tmp_path):
    base = miniatures["sd15"][0]
    tensors = load_latent_model(base, CPU).network.backbone.state_dict()
    held = {name: value for name, value in tensors.items() if not name.startswith("conv_norm_out.")}
    safetensors.torch.save_file(held, tmp_path / "x.safetensors")
    said = refusal(base, overrides=Overrides(unet=str(tmp_path / "x.safetensors")))
    assert "it lacks conv_norm_out.bias, conv_norm_out.weight; fetch the file again, or give the base or" in said


def test_weights_in_whole_numbers_are_refused_and_not_read_as_they_are(copy, miniatures, tmp_path):
    folder, whole = copy(), tmp_path / "whole.safetensors"
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = folder / part / f"{name}.safetensors"
        held = safetensors.torch.load_file(file)
        safetensors.torch.save_file({key: value.to(torch.int8) for key, value in held.items()}, file, {"format": "pt"})
        for shaped in (False, True):  # as where it is spread over processes
            assert f"{name}.safetensors holds " in refusal(folder, shaped=shaped)
        safetensors.torch.save_file(held, file, {"format": "pt"})
    held = safetensors.torch.load_file(miniatures["sd15"][1])
    safetensors.torch.save_file({key: value.to(torch.int32) for key, value in held.items()}, whole)
    said = "in whole numbers, which are no weights by themselves; take the model in bf16, fp16 or fp32"
    assert said in refusal(whole, base_config=str(folder))
    with pytest.raises(UserError, match=said):
        load_codec(whole, CPU, str(folder))


# The Hub's cache


@pytest.fixture
def cached(copy, tmp_path):
    """The copy of a repository as the Hub's cache has it."""
    return put_in_cache(copy(), tmp_path)


def test_a_copy_in_the_hubs_cache_stands_for_its_newest_files(cached, miniatures):
    base, whole = miniatures["sd15"]
    wanted = load_latent_model(base, CPU).network.backbone.state_dict()
    alone = load_latent_model(base, CPU, overrides=Overrides(unet=str(cached)))
    assert alone.card.name == "name"
    for model in (
        alone,
        load_latent_model(whole, CPU, str(cached)),
    ):
        held = model.network.backbone.state_dict()
        assert all(torch.equal(held[name], value) for name, value in wanted.items())
    waiting = load_latent_model(cached, CPU, shaped=True).network.backbone  # as where it is spread over processes
    assert all(value.is_meta for value in waiting.parameters())
    assert recognise(whole, str(cached)) == recognise(whole, str(base))


@pytest.mark.parametrize("said", [b"", b"gone", b"../../other", b"..", b"\xff\xfe\x80", b"a\0b", None])
def test_a_copy_that_names_no_files_of_its_own_is_refused(said, cached, miniatures):
    shutil.copytree(miniatures["sd15"][0], cached.parent / "other")
    (cached / "refs" / "main").unlink()
    if said is None:
        (cached / "refs" / "main").mkdir()
    else:
        (cached / "refs" / "main").write_bytes(said)
    assert "refs/main names no folder in snapshots/" in refusal(cached)


def test_of_a_copy_that_says_nothing_the_only_files_are_read(cached, miniatures):
    wanted = load_latent_model(miniatures["sd15"][0], CPU).network.backbone.state_dict()
    (cached / "refs" / "main").unlink()  # as where another branch was fetched
    for _ in range(2):
        held = load_latent_model(cached, CPU).network.backbone.state_dict()
        assert all(torch.equal(held[name], value) for name, value in wanted.items())
        shutil.rmtree(cached / "refs", ignore_errors=True)  # as where the files alone were copied
    shutil.copytree(cached / "snapshots" / "abc", cached / "snapshots" / "def", symlinks=True)
    said = refusal(cached)
    assert "has abc, def in snapshots/, of which no refs/main names the newest; fetch the model again, or give" in said
    shutil.rmtree(cached / "snapshots")
    (cached / "snapshots").mkdir()
    assert "its snapshots/ are empty" in refusal(cached)


def test_a_few_step_model_in_the_hubs_cache_has_its_repositorys_name(random_student, tmp_path):
    (tmp_path / "model").mkdir()
    cached = put_in_cache(random_student / "model", tmp_path)
    (cached / "snapshots" / "abc" / "fewstep.json").unlink()  # which has a name of its own
    for place in (cached, cached / "snapshots" / "abc"):
        assert load_pipeline(place, "cpu").name == "name"
