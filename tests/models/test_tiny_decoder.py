"""Small decoders in TAESD's layout: every spelling of the same one decodes alike, and the bundled one nearly as the
autoencoder does."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from fewstep import assets
from fewstep.errors import UserError
from fewstep.models.pipeline import load_pipeline
from fewstep.models.tiny_decoder import load_tiny_decoder

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
    for source in (tmp_path / "folder", tmp_path / "taesd_decoder.safetensors", whole):
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
        with pytest.raises(UserError, match="no decoder in TAESD's layout"):
            load_tiny_decoder(source, CPU)


def test_the_bundled_one_decodes_nearly_as_the_autoencoder():
    prompts = [f"a {colour} {shape} on a white background" for colour in ("red", "blue") for shape in ("star", "ring")]
    pipelines = [load_pipeline("scenes-lcm", "cpu", tiny_decoder=name) for name in ("", assets.SCENES_TINY)]
    whole, tiny = (np.stack([np.asarray(image).astype(int) for image in each(prompts)]) for each in pipelines)
    assert 0 < np.abs(whole - tiny).mean() < 4
