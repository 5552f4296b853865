"""`generate --mask`: what is not marked stays, and the picture says so."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fewstep.commands.generate import Generate, generate
from fewstep.data.infotext import read_infotext
from fewstep.errors import UserError


@pytest.fixture
def pictures(tmp_path):
    start, mask = Image.new("RGB", (64, 64), "white"), Image.new("L", (64, 64))
    ImageDraw.Draw(start).ellipse((8, 20, 28, 44), "red")
    mask.paste(255, (32, 0, 64, 64))
    start.save(tmp_path / "start.png")
    mask.save(tmp_path / "mask.png")
    return tmp_path


def paint(folder, **changes):
    args = {"prompt": ("a blue star",), "init_image": folder / "start.png", "out": folder / "out", "device": "cpu"}
    generate(Generate(**{**args, **changes}))
    return Image.open(max((folder / "out").iterdir(), key=lambda path: path.stat().st_mtime_ns))


def test_generate_paints_under_its_mask(pictures):
    start = np.asarray(Image.open(pictures / "start.png")).astype(int)
    sharp = paint(pictures, mask=pictures / "mask.png", mask_blur=0.0, strength=1.0)
    changed = np.abs(np.asarray(sharp) - start)
    assert changed[:, :32].max() == 0
    assert changed[:, 32:].mean() > 1
    told = read_infotext(sharp.info["parameters"]).settings
    assert (told["Mask"], told["Mask blur"]) == (str(pictures / "mask.png"), "0")
    soft = paint(pictures, mask=pictures / "mask.png", strength=1.0)
    assert np.abs(np.asarray(soft).astype(int) - np.asarray(sharp)).max() > 1
    Image.new("L", (32, 64), 255).save(pictures / "other.png")
    with pytest.raises(UserError, match="mask is 32x64 and the picture 64x64"):
        paint(pictures, mask=pictures / "other.png")


def test_steps_that_nobody_named_fit_the_strength(pictures):
    assert read_infotext(paint(pictures, strength=0.05).info["parameters"]).settings["Steps"] == "2"
    with pytest.raises(UserError, match="allows 1 to 2 at strength"):
        paint(pictures, strength=0.05, steps=4)
