"""Small decoders in TAESD's layout: every spelling of the same one decodes alike."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from fewstep.errors import UserError
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.models.tiny_decoder import load_tiny_decoder
from hub_cache import put_in_cache

CPU = torch.device("cpu")


def test_every_spelling_is_the_same_decoder(tmp_path):
    torch.manual_seed(0)
    tiny = AutoencoderTiny(latent_channels=4).eval()
    tiny.save_pretrained(tmp_path / "folder")
    state = tiny.decoder.layers.state_dict()
    originals = {f"{int(key.split('.')[0]) + 1}.{key.split('.', 1)[1]}": value for key, value in state.items()}
    save_file(originals, tmp_path / "taesd_decoder.safetensors")
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        wanted = tiny.decode(z).sample
    whole = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    cached = put_in_cache(tmp_path / "folder", tmp_path)
    for source in (tmp_path / "folder", cached, tmp_path / "taesd_decoder.safetensors", whole):
        torch.testing.assert_close(load_tiny_decoder(source, CPU).decode(z).sample, wanted)
    assert wanted.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_what_is_none_is_refused(tmp_path, content):
    file = tmp_path / "tiny.safetensors"
    if content is None:
        save_file({"conv.weight": torch.zeros(1)}, file)
    else:
        file.write_bytes(content)
    for source in (file, tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match="decoder in TAESD's layout") as caught:
            load_tiny_decoder(source, CPU)
        assert str(caught.value).startswith(f"{source} is ")


def test_a_scale_that_is_no_number_is_refused(tiny_decoder, tmp_path, edit_json):
    shutil.copytree(tiny_decoder, tmp_path / "tiny")
    edit_json(tmp_path / "tiny" / "config.json", scaling_factor=None)
    with pytest.raises(UserError, match="scaling_factor None"):
        load_tiny_decoder(tmp_path / "tiny", CPU)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_pipeline_decodes_with_it_and_at_its_own_scale(tiny_decoder, tmp_path, scale):
    tiny = AutoencoderTiny.from_pretrained(tiny_decoder)
    tiny.register_to_config(scaling_factor=scale)
    tiny.save_pretrained(tmp_path)
    pipeline = load_pipeline("scenes-lcm", "cpu", tiny_decoder=tmp_path)
    z_0 = torch.randn(2, *pipeline.model.codec.shape(64))
    with torch.no_grad():
        torch.testing.assert_close(
            pipeline.model.codec.decode(z_0), tiny.decode(z_0 / scale).sample, rtol=1e-4, atol=1e-4
        )
    painted, whole = pipeline("a pink heart"), load_pipeline("scenes-lcm", "cpu")("a pink heart")
    assert np.any(np.asarray(painted[0]) != np.asarray(whole[0]))
