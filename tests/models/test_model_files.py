"""What a model's folder may have us read: weights in safetensors and files of known names in it, and no code."""

import json
import logging
import os
import shutil
import sys

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderTiny

from fewstep.commands.generate import read_picture
from fewstep.commands.inspect import Inspect, inspect
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.models import scenes_model
from fewstep.models.extractors import load_extractor
from fewstep.models.loading import load_codec, load_latent_model
from fewstep.models.tiny_decoder import load_tiny_decoder
from miniatures import save_clip, save_miniature
from single_files import save_single_file

CPU = torch.device("cpu")
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A pipeline, a single file of the same, a CLIP and a small decoder; do not write into them."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    save_single_file("sd15", save_miniature("sd15", tokenizer, root / "sd15"), root / "sd15.safetensors")
    save_clip(tokenizer, root / "clip")
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(
        root / "tiny"
    )
    return root


@pytest.fixture
def copied(models, tmp_path):
    """All of them, to spoil, beside a secret."""
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "secret.safetensors").write_bytes(
        (models / "sd15/unet/diffusion_pytorch_model.safetensors").read_bytes()
    )
    return shutil.copytree(models, tmp_path / "models")


@pytest.fixture(autouse=True)
def unpickled(monkeypatch):
    """What any library hands to torch's unpickler, which must be nothing."""
    found = []
    monkeypatch.setattr(torch, "load", lambda *given, **_: found.append(given) or {})
    yield found
    assert found == []


def refusal(act):
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("unet", "evil.bin"), ("unet", "../../../secret.safetensors"), ("vae", "evil.ckpt"), ("tiny", "evil.pt"),
        ("clip", "evil.txt"), ("text_encoder", "evil.bin"), ("text_encoder", "../../../secret.safetensors"),
    ],
)  # fmt: skip
def test_an_index_of_strangers_is_not_followed(part, named, copied, edit_json):
    """Beside empty weights, and where a text encoder's configuration names it too."""
    folder = copied / part if part in ("clip", "tiny") else copied / "sd15" / part
    stem = {**STEMS, "clip": "model", "tiny": "diffusion_pytorch_model"}[part]
    keys = safetensors.torch.load_file(folder / f"{stem}.safetensors")
    safetensors.torch.save_file({}, folder / f"{stem}.safetensors", {"format": "pt"})
    (folder / "evil.bin").write_bytes(b"a pickle")
    index = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(keys, named)})
    for name in (f"{stem}.safetensors.index.json", "evil.safetensors.index.json"):
        (folder / name).write_text(index)
    load = {"clip": lambda: load_extractor(folder, CPU), "tiny": lambda: load_tiny_decoder(folder, CPU)}.get(
        part, lambda: load_latent_model(copied / "sd15", CPU)
    )
    assert "it lacks" in refusal(load)
    if part in ("clip", "text_encoder"):
        edit_json(folder / "config.json", transformers_weights="evil.safetensors.index.json")
        assert "names 'evil.safetensors.index.json' as its weights" in refusal(load)


def test_a_part_of_a_class_that_no_disk_holds_is_refused(copied, edit_json):
    edit_json(copied / "sd15" / "model_index.json", unet=["a" * 300, "Network"])
    assert "which is code of its own" in refusal(lambda: load_latent_model(copied / "sd15", CPU))


FILES = [
    "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json",
    "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "text_encoder/config.json",
    "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "fewstep.json",
]  # fmt: skip


@pytest.mark.parametrize("name", [*FILES, "unet", "tokenizer"])
def test_a_link_out_of_the_folder_is_not_followed(name, copied, capsys):
    place, away = copied / "sd15" / name, copied.parent / "away"
    if place.exists():
        place.rename(away)
    else:
        away.write_text("{}")
    place.symlink_to("../../away" if place.parent.name == "sd15" else "../../../away")
    said = refusal(lambda: load_latent_model(copied / "sd15", CPU))
    assert "leads out of the model's folder" in said
    assert name.rpartition("/")[2] in said
    try:
        inspect(Inspect(path=copied / "sd15"))
        seen = capsys.readouterr().out
    except UserError as error:
        seen = str(error)
    unread = name.startswith(("tokenizer/", "text_encoder/config")) and name != "tokenizer/tokenizer_config.json"
    assert ("leads out of the model's folder" in seen) is not unread


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_not_waited_for(name, copied):
    place = copied / "sd15" / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    said = refusal(lambda: load_latent_model(copied / "sd15", CPU))
    if name == "tokenizer/tokenizer.json":  # one of two files that will do
        assert said.startswith(f"{place.parent} has no tokenizer.json and no vocab.json")
    else:
        assert said == f"{place} is not a file; fetch the model again"


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "cannot be read as a picture" in refusal(lambda: read_picture(tmp_path / "a.png"))
    assert "is neither a picture nor" in refusal(lambda: inspect(Inspect(path=tmp_path / "a.png")))


def test_links_in_the_folder_and_in_the_hubs_cache_are_followed(copied, models):
    wanted = load_latent_model(models / "sd15", CPU)
    cached = copied / "models--me--mini/snapshots/abc"
    shutil.copytree(copied / "sd15", cached)
    (cached.parent.parent / "blobs").mkdir()
    for number, name in enumerate(each for each in FILES if (cached / each).exists()):
        blob = cached.parent.parent / f"blobs/{number}"
        (cached / name).rename(blob)
        (cached / name).symlink_to(os.path.relpath(blob, (cached / name).parent))
    inside = copied / "sd15/text_encoder/model.safetensors"
    inside.rename(copied / "sd15/shared.safetensors")
    inside.symlink_to("../shared.safetensors")
    (copied / "door").symlink_to(cached)
    for place in (cached, copied / "door", copied / "sd15"):
        model = load_latent_model(place, CPU)
        check_parts(model, wanted)
        assert str(place) in model.network.backbone.config["_name_or_path"]
    (cached.parent.parent / "refs").mkdir()
    (cached.parent.parent / "refs" / "main").write_text("abc\n")
    check_parts(load_latent_model(cached.parent.parent, CPU), wanted)


def check_parts(model, wanted):
    assert model.parts.keys() == wanted.parts.keys()
    for part, held in wanted.parts.items():
        found, expected = model.parts[part].state_dict(), held.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Model"}}),
        ("text_encoder/config.json", {"quantization_config": {"quant_method": "evil"}}),
        ("text_encoder/config.json", {"attn_implementation": "evil/kernel"}),
        ("text_encoder/config.json", {"vision_config": {"_attn_implementation": "evil/kernel"}}),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil--Model"}}),
        ("unet/config.json", {"quantization_config": {"quant_method": "evil"}}),
        ("tokenizer/tokenizer_config.json", {"auto_map": ["evil.Tokenizer", None]}),
        ("tokenizer/tokenizer_config.json", {"trust_remote_code": True}),
    ],
)
def test_configurations_that_ask_for_code_are_refused(file, changes, copied, edit_json):
    edit_json(copied / "sd15" / file, **changes)
    assert "which has other code run or other weights read" in refusal(lambda: load_latent_model(copied / "sd15", CPU))
    if "tokenizer" in file or "text" in file:
        single = copied / "sd15.safetensors"
        assert "other code run" in refusal(lambda: load_latent_model(single, CPU, str(copied / "sd15")))


@pytest.mark.parametrize("library", ["evil_module", "evil.module", "../evil", "os", 7])
@pytest.mark.parametrize("part", ["tokenizer", "unet", "guider"])
def test_a_pipeline_with_modules_of_its_own_is_refused(library, part, copied, edit_json, monkeypatch):
    (copied / "evil_module.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(copied)
    edit_json(copied / "sd15/model_index.json", **{part: [library, "Evil"]})
    for load in (
        lambda: load_latent_model(copied / "sd15", CPU), lambda: load_codec(copied / "sd15", CPU),
        lambda: load_latent_model(copied / "sd15.safetensors", CPU, str(copied / "sd15")),
        lambda: load_codec(copied / "sd15.safetensors", CPU, str(copied / "sd15")),
    ):  # fmt: skip
        assert "which is code of its own" in refusal(load)
    assert "evil_module" not in sys.modules


def test_the_parts_that_diffusers_itself_has_beside_a_pipeline_are_known(copied, edit_json, models):
    edit_json(
        copied / "sd15/model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"], image_encoder=[None, None],
    )  # fmt: skip
    wanted = load_latent_model(models / "sd15", CPU)
    check_parts(load_latent_model(copied / "sd15", CPU), wanted)
    check_parts(load_latent_model(copied / "sd15.safetensors", CPU, str(copied / "sd15")), wanted)


def test_a_tokenizers_configuration_names_no_files_and_no_arguments(copied, edit_json, models):
    names = ("special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file", "added_tokens_file")
    (copied / "sd15/tokenizer/tokenizer.9.0.json").write_text("{}")
    (copied / "sd15/tokenizer/tekken.json").write_text("{}")
    edit_json(
        copied / "sd15/tokenizer/tokenizer_config.json", **dict.fromkeys(names, "/dev/zero"),
        fast_tokenizer_files=["tokenizer.4.0.json", "../../secret.json"], init_inputs=["/dev/zero", "/dev/zero"],
        vocab="/dev/zero", merges="/dev/zero", name_or_path="someone/else",
    )  # fmt: skip
    found, wanted = (load_latent_model(each / "sd15", CPU).conditioner for each in (copied, models))
    assert found.first.tokenizer("a red star").input_ids == wanted.first.tokenizer("a red star").input_ids
    assert found.first.tokenizer.name_or_path == str(copied / "sd15/tokenizer")


def test_a_program_in_torchscript_is_told_of(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "net.pt").write_bytes(b"no program")
    assert "is not a TorchScript file" in refusal(lambda: load_extractor(tmp_path / "net.pt", CPU))
    assert f"{tmp_path / 'net.pt'} is a program in TorchScript, which is run" in caplog.text
    (tmp_path / "folder").mkdir()
    (tmp_path / "net.pt").rename(tmp_path / "folder/model.pt")
    assert "neither a folder of CLIP or DINOv2" in refusal(lambda: load_extractor(tmp_path / "folder", CPU))
