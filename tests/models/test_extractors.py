"""Features from CLIP, DINOv2 and a TorchScript file, on miniatures in their real layouts."""

import pytest
import torch
from transformers import CLIPModel, Dinov2Config, Dinov2Model

from fewstep.errors import UserError
from fewstep.models.extractors import load_extractor, resized
from hub_cache import put_in_cache
from miniatures import MEAN, STD, say_preprocessing

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures():
    return torch.randint(0, 256, (5, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalised(pictures):
    pixels = pictures.permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_clip_is_transformers_own(clip, pictures):
    extractor, model = load_extractor(clip, CPU), CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(normalised(pictures)).pooler_output)
        torch.testing.assert_close(extractor.features(pictures), seen)
        both = model(
            input_ids=torch.randint(0, 9, (1, 4)), pixel_values=normalised(pictures)
        ).image_embeds  # unit vectors there
    torch.testing.assert_close(torch.nn.functional.normalize(extractor.features(pictures)), both)
    texts = extractor.text_features(["a red star", "a blue ring on a white background", "a red star"])
    assert texts.shape == (3, 16)
    assert torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0], texts[1])
    assert (len(extractor.sha256), extractor.resize) == (64, "middle square to 28")


def test_a_copy_in_the_hubs_cache_stands_for_its_newest_files(clip, pictures, tmp_path):
    cached, own = put_in_cache(clip, tmp_path), load_extractor(clip, CPU)
    for place in (cached, cached / "snapshots" / "abc"):
        extractor = load_extractor(place, CPU)
        assert (extractor.name, extractor.sha256) == ("CLIP name", own.sha256)
        torch.testing.assert_close(extractor.features(pictures), own.features(pictures))


def test_dinov2_is_transformers_own(tmp_path, pictures):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(tmp_path)
    say_preprocessing(tmp_path, crop_size={"height": 28, "width": 28})
    extractor = load_extractor(tmp_path, CPU)
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(tmp_path)(normalised(pictures)).pooler_output
    torch.testing.assert_close(extractor.features(pictures), expected)
    assert extractor.text_features is None


class Inception(torch.nn.Module):
    """The signature of FID's TorchScript file, and features that show what came in."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert x.dtype == torch.uint8
        y = x.float()
        if return_features:
            return torch.cat([y.mean((2, 3)), y[:, :, 0, 0], torch.full((x.shape[0], 1), float(x.shape[3]))], 1)
        return y.mean((2, 3))


def test_inception_is_given_bytes_of_its_size_and_asked_for_features(tmp_path):
    torch.jit.script(Inception()).save(str(tmp_path / "inception.pt"))
    extractor = load_extractor(tmp_path / "inception.pt", CPU)
    pictures = torch.full((2, 64, 64, 3), 200, dtype=torch.uint8)
    pictures[:, :, :, 1] = 50
    assert extractor.features(pictures).tolist() == [[200, 50, 200, 200, 50, 200, 299]] * 2


def test_resizing_is_antialiased_and_takes_the_middle():
    stripes = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    grey = resized(stripes, 16)
    assert grey.shape == (1, 3, 16, 16)
    assert (grey - 0.5).abs().max() < 0.05  # columns left out would make it black or white
    wide = torch.zeros(1, 10, 30, 3, dtype=torch.uint8)
    wide[:, :, 10:20] = 255
    torch.testing.assert_close(resized(wide, 10), torch.ones(1, 3, 10, 10))
    torch.testing.assert_close(resized(wide, 5), torch.ones(1, 3, 5, 5))
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    torch.testing.assert_close(resized(ramp, 16)[0, 0] * 255, ramp[0, :, :, 0].float())


def test_what_is_no_extractor_gets_one_line(tmp_path):
    (tmp_path / "junk.pt").write_text("junk")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    cases = {"junk.pt": "TorchScript", "empty": "config.json", "bert": "'bert' model", "missing": "config.json"}
    for name, said in cases.items():
        with pytest.raises(UserError, match=said) as caught:
            load_extractor(tmp_path / name, CPU)
        assert "\n" not in str(caught.value)
