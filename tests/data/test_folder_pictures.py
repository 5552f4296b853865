"""How the pictures of a user's folder are decoded, limited, brought to RGB and cut."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.data.reading import CropSettings, crop_picture
from fewstep.data.sources.base import Example
from fewstep.data.sources.decoding import decode
from fewstep.data.sources.filters import Filters
from fewstep.data.sources.fitting import MAX_PIXELS, PictureLimits, fit_square
from fewstep.data.sources.folder import open_folder
from fewstep.data.sources.selection import Selection
from fewstep.data.sources.squares import SquarePictures
from fewstep.errors import UserError

RED, BLUE = (220, 30, 30), (30, 30, 220)


def squares(path: Path, resolution: int, max_pixels: int = MAX_PIXELS) -> SquarePictures:
    selection = Selection(limits=PictureLimits(max_pixels=max_pixels, side=resolution))
    return SquarePictures(open_folder(path, selection), resolution)


def pixel(example: Example, x: int, y: int) -> tuple[int, ...]:
    return tuple(np.asarray(example.image)[y, x].tolist())


def test_photographs_in_folders_become_squares_with_their_captions(
    tmp_path: Path, photographs: list[Image.Image], add: Callable[..., Path]
):
    rng = random.Random(0)
    expected = {}
    for i in range(12):
        photo = photographs[i % 2]
        width, height = rng.randint(40, 600), rng.randint(40, 400)
        left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
        name = f"{'temples' if i % 2 else 'flowers'}/{i:02}{('.jpg', '.JPEG', '.png', '.WebP')[i % 4]}"
        add(tmp_path, name, f"photograph {i}", photo.crop((left, top, left + width, top + height)))
        expected[name] = f"photograph {i}"
    data = squares(tmp_path, 64)
    assert len(data) == 12
    assert {data.source.key(i): data.caption(i) for i in range(12)} == expected
    for i, example in enumerate(data):
        assert example.caption == data.caption(i)
        assert (example.image.mode, example.image.size) == ("RGB", (64, 64))
    assert data.report.format_summary() == "data: 12 pictures found, 12 used, 0 dropped"


@pytest.mark.parametrize(
    ("width", "height"), [(640, 427), (427, 640), (300, 300), (64, 64), (65, 64), (20, 31), (7, 200)]
)
def test_the_shorter_side_is_brought_to_the_resolution_by_bicubic_and_the_middle_is_cut_out(
    tmp_path: Path, photographs: list[Image.Image], width: int, height: int, add: Callable[..., Path]
):
    source = photographs[0].resize((width, height))
    add(tmp_path, "a.png", "a temple", source)
    long = round(max(width, height) * 64 / min(width, height))
    resized = source.resize((long, 64) if width > height else (64, long), Image.Resampling.BICUBIC)
    margin = (long - 64) // 2
    box = (margin, 0, margin + 64, 64) if width > height else (0, margin, 64, margin + 64)
    image = squares(tmp_path, 64)[0].image
    assert np.array_equal(np.asarray(image), np.asarray(resized.crop(box)))
    assert np.array_equal(np.asarray(image), np.asarray(fit_square(source, 64)))


def test_reducing_averages_over_the_source_so_that_fine_stripes_become_grey(tmp_path: Path, add: Callable[..., Path]):
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    add(tmp_path, "a.png", "stripes", Image.fromarray(stripes))
    levels = np.asarray(squares(tmp_path, 64)[0].image)
    assert levels.min() > 120
    assert levels.max() < 136


@pytest.mark.parametrize("size", [(8001, 8000), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_the_pixel_limit_is_read_from_the_header_before_anything_is_decoded(
    tmp_path: Path, size: tuple[int, int], add: Callable[..., Path], png_that_claims: Callable[[int, int], bytes]
):
    add(tmp_path, "good.png", "a good one")
    add(tmp_path, "bomb.png", "a bomb").write_bytes(png_that_claims(*size))
    for action in ("error", "default"):
        with warnings.catch_warnings(record=action == "default") as seen:
            warnings.simplefilter(action)
            assert squares(tmp_path, 16).report.names == {"too large": ["bomb.png"]}
        assert not seen


def test_the_pixel_limit_can_be_set(tmp_path: Path, add: Callable[..., Path]):
    add(tmp_path, "at the limit.png", "a", Image.new("RGB", (50, 40)))
    add(tmp_path, "above.jpg", "b", Image.new("RGB", (69, 29)))
    assert MAX_PIXELS == 64_000_000
    assert len(squares(tmp_path, 64)) == 2
    assert squares(tmp_path, 64, max_pixels=2000).report.names == {"too large": ["above.jpg"]}


def test_a_sliver_that_would_grow_past_the_limit_when_resized_is_too_large(tmp_path: Path, add: Callable[..., Path]):
    add(tmp_path, "good.png", "a good one")
    add(tmp_path, "sliver.png", "one pixel high", Image.new("L", (60_000, 1)))
    assert squares(tmp_path, 512).report.names == {"too large": ["sliver.png"]}
    assert len(squares(tmp_path, 8)) == 2


# Red left and blue right, once upright, for each way in which a camera may store it.
STORED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_upright_as_its_exif_says(
    tmp_path: Path, photographs: list[Image.Image], orientation: int, suffix: str
):
    upright = photographs[0].crop((100, 50, 360, 230))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = STORED[orientation](upright)
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {"quality": 95}))
    (tmp_path / "a.txt").write_text("a temple")
    found = np.asarray(squares(tmp_path, 48)[0].image).astype(float)
    error = np.abs(found - np.asarray(fit_square(upright, 48))).mean()
    assert error < (3 if suffix == "jpg" else 0.001)


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path):
    Image.new("RGB", (20, 20), RED).save(tmp_path / "a.jpg", exif=b"Exif\0\0no such thing as a directory")
    (tmp_path / "a.txt").write_text("red")
    assert len(squares(tmp_path, 16)) == 1


def ramp(mode: str) -> Image.Image:
    return Image.linear_gradient("L").resize((32, 32)).convert(mode)


def test_grey_palette_and_print_colours_become_the_same_rgb(tmp_path: Path, add: Callable[..., Path]):
    picture = Image.new("RGB", (32, 32), BLUE)
    picture.paste(RED, (0, 0, 16, 32))
    add(tmp_path, "cmyk.jpg", "c", picture.convert("CMYK"))
    add(tmp_path, "palette.png", "p", picture.quantize(4))
    add(tmp_path, "bits.png", "1", ramp("1"))
    add(tmp_path, "grey.jpg", "l", ramp("L"))
    data = {example.caption: example for example in squares(tmp_path, 32)}
    for name in "cp":
        assert np.abs(np.subtract(pixel(data[name], 4, 16), RED)).max() < 8
        assert np.abs(np.subtract(pixel(data[name], 28, 16), BLUE)).max() < 8
    assert pixel(data["1"], 16, 1) == (0, 0, 0)
    assert pixel(data["1"], 16, 31) == (255, 255, 255)
    assert np.abs(np.asarray(data["l"].image).astype(int) - np.asarray(ramp("RGB"))).max() < 4


def half_transparent(mode: str) -> Image.Image:
    """Red left; right of it nothing, half, or a key colour, as far as `mode` can say so."""
    image = Image.new("RGBA", (32, 32), (*RED, 255))
    image.paste((*BLUE, 0), (16, 0, 32, 32))
    return image.convert(mode)


def test_transparent_pictures_lie_on_white(tmp_path: Path, add: Callable[..., Path]):
    rgba = half_transparent("RGBA")
    rgba.paste((0, 0, 0, 128), (16, 16, 32, 32))
    add(tmp_path, "rgba.png", "rgba", rgba)
    rgba.save(tmp_path / "webp.webp", lossless=True)
    (tmp_path / "webp.txt").write_text("webp")
    add(tmp_path, "la.png", "la", half_transparent("LA"))
    half_transparent("RGB").save(tmp_path / "key.png", transparency=BLUE)
    (tmp_path / "key.txt").write_text("key")
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (16, 0, 32, 32))
    palette.save(tmp_path / "palette.png", transparency=1)
    (tmp_path / "palette.txt").write_text("palette")
    data = squares(tmp_path, 32)
    assert len(data) == 5
    for example in data:
        assert pixel(example, 24, 8) == (255, 255, 255), example.caption
        if example.caption != "la":
            assert pixel(example, 8, 8) == RED, example.caption
        if example.caption in ("rgba", "webp"):
            assert pixel(example, 24, 24) == (127, 127, 127)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, add: Callable[..., Path]):
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    add(tmp_path, "deep.png", "a ramp", Image.fromarray(levels))
    example = squares(tmp_path, 32)[0]
    assert np.array_equal(np.asarray(example.image)[..., 0], (levels / 257).round())
    assert example.image.mode == "RGB"
    Image.fromarray(levels).save(tmp_path / "deep.png", transparency=int(levels[0, 9]))
    grey = np.asarray(squares(tmp_path, 32)[0].image)[0, :, 0]
    assert [int(level) for level in grey[8:11]] == [2, 255, 2]


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str):
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    (tmp_path / "a.txt").write_text("red, then blue")
    assert np.abs(np.subtract(pixel(squares(tmp_path, 32)[0], 16, 16), RED)).max() < 4


def test_pictures_are_decoded_anew_and_equal_every_time(
    tmp_path: Path, photographs: list[Image.Image], add: Callable[..., Path]
):
    add(tmp_path, "a.jpg", "a temple", photographs[0])
    data = squares(tmp_path, 32)
    first, second = data[0], data[-1]
    assert first.image is not second.image
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))
    with pytest.raises(IndexError):
        data[1]


def test_a_resolution_is_at_least_one(tmp_path: Path, add: Callable[..., Path]):
    add(tmp_path, "a.png", "words")
    with pytest.raises(UserError, match="resolution is 0; it must be at least 1"):
        squares(tmp_path, 0)


@pytest.mark.parametrize(("resolution", "reduced"), [(18, 8), (19, 4), (36, 4), (37, 2), (73, 2), (74, 1), (300, 1)])
@pytest.mark.parametrize("number", [0, 1])
def test_a_large_jpeg_is_decoded_small_where_that_is_exact_enough(
    tmp_path: Path, photographs: list[Image.Image], resolution: int, reduced: int, number: int
):
    exif = Image.Exif()
    exif[0x0112] = 6
    photographs[number].crop((0, 0, 640, 424)).save(tmp_path / "a.jpg", quality=90, exif=exif)
    (tmp_path / "a.txt").write_text("words")
    selection = Selection(limits=PictureLimits(side=resolution), filters=Filters(min_side=424))
    example = open_folder(tmp_path, selection).read(0)
    assert (example.reduced, example.image.size) == (reduced, (424 // reduced, 640 // reduced))
    found = crop_picture(example, CropSettings(resolution=resolution, crop="random"), 0, 0)
    whole = Example(decode((tmp_path / "a.jpg").read_bytes()), "words")
    expected = crop_picture(whole, CropSettings(resolution=resolution, crop="random"), 0, 0)
    assert found.sizes == expected.sizes
    error = np.abs(np.asarray(found.image).astype(int) - np.asarray(expected.image))
    assert error.mean() <= 0.6
    assert np.percentile(error, 99) <= 3
    assert (error.max() > 0) == (reduced > 1)


def test_no_other_picture_is_decoded_small(tmp_path: Path, photographs: list[Image.Image], add: Callable[..., Path]):
    for name, size in (("a.png", (640, 424)), ("b.jpg", (639, 424)), ("c.webp", (640, 424))):
        add(tmp_path, name, "words", photographs[0].crop((0, 0, *size)))
    source = open_folder(tmp_path, Selection(limits=PictureLimits(side=20)))
    assert [source.read(i).reduced for i in range(3)] == [1, 1, 1]
