"""A student of every family is served: a seed is its picture, alone or among others, from noise and from a picture."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from fewstep.models.pipeline_loading import load_pipeline
from flow_runs import make_run
from serving import serving

PROMPT, OTHER = "a red star", "a small blue circle on green"


@pytest.fixture
def painter(flow, flow_pictures):
    return load_pipeline(make_run(flow, flow_pictures, "whole-any-step").model, "cpu")


def opened(b64):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB"), dtype=int)


def test_it_is_served(painter, flow_pictures):
    picture = (flow_pictures / "0.png").read_bytes()
    inside = painter.model.family.guided_inside
    off = {} if inside else {"cfg_scale": painter.model.family.guidance_of(0.0)}
    with serving(painter) as served:
        odd = served.post("/sdapi/v1/txt2img", prompt=PROMPT, steps=1, seed=5, cfg_scale=9)
        both = served.post("/sdapi/v1/txt2img", prompt=PROMPT, steps=3, seed=5, batch_size=2, **off)
        large = served.post(
            "/sdapi/v1/txt2img", prompt=OTHER, steps=2, seed=5, enable_hr=True, hr_scale=2, denoising_strength=0.5
        )["images"]  # fmt: skip
        begun = served.post(
            "/sdapi/v1/img2img", prompt=PROMPT, steps=4, seed=5, denoising_strength=0.5, width=64, height=64,
            init_images=[base64.b64encode(picture).decode()],
        )["images"]  # fmt: skip
    assert "has no effect" not in both["info"]
    assert ("trained for 4'" if inside else "built into this model: cfg_scale 9 has") in str(json.loads(odd["info"]))
    both = both["images"]
    for i, image in enumerate(both):
        assert np.abs(opened(image) - np.asarray(painter(PROMPT, steps=3, seed=5 + i)[0], dtype=int)).max() <= 2
    assert opened(large[0]).shape == (128, 128, 3)
    assert np.abs(opened(begun[0]) - opened(both[0])).max() > 2
