"""Pictures painted under a mask: by the sampler, by the server, as A1111's and OpenAI's clients ask for it."""

import base64
import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from websockets.sync.client import connect

from fewstep.data.masks import feather, fill_from_around, mark_free
from fewstep.diffusion.prediction import to_prediction
from fewstep.errors import UserError
from fewstep.method.landing import BY_DDIM, ConsistencyFunction
from fewstep.method.sampling import Kept, sample_consistency
from fewstep.serve.acceptance import STRENGTHS
from fewstep.serve.jobs import PictureSpec

PROMPT = "a large blue star on a white background"


def levels(image):
    return np.asarray(image.convert("RGB")).astype(int)


def encode(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def b64(image):
    return base64.b64encode(encode(image)).decode()


def right_half(size=(64, 64), mode="L", white=255):
    mask = Image.new(mode, size, 0)
    mask.paste(white, (size[0] // 2, 0, *size))
    return mask


@pytest.fixture(scope="module")
def start(bundled):
    return bundled("a large red heart on a white background", seed=1)[0]


@pytest.fixture(scope="module")
def img2img(served, start):
    def post(status=200, **fields):
        asked = {"prompt": PROMPT, "init_images": [b64(start)], "seed": 3, "steps": 2, "denoising_strength": 1.0}
        return served.post("/sdapi/v1/img2img", status, **{**asked, **fields})

    return post


def picture(answer):
    return levels(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))))


@pytest.mark.parametrize("ends", [None, [499, 0], [0, 0]])
def test_what_is_kept_stands_at_every_steps_level_of_noise(sd_schedule, ends):
    """Of a network that gives back what it is shown, with the level of noise of the known half at each evaluation."""
    seen = []

    def network(z, t, *_):
        seen.append(z)
        return to_prediction("epsilon", torch.zeros_like(z), z, *sd_schedule.coefficients(t, z))

    f = ConsistencyFunction(network, {}, None, sd_schedule, BY_DDIM)
    z_0, free = torch.randn(2, 4, 6, 6), torch.zeros(1, 1, 6, 6, dtype=torch.bool)
    free[..., 3:] = True
    noises = [torch.randn_like(z_0) for _ in range(2)]
    draw = iter(noises).__next__
    done = sample_consistency(f, [999, 499], draw, torch.zeros_like(z_0), ends, Kept(z_0, free))
    assert torch.equal(done[..., :3], z_0[..., :3])
    assert not torch.equal(done[..., 3:], z_0[..., 3:])
    noise = noises[0] if ends and ends[0] else noises[1]
    known = sd_schedule.diffuse(z_0, noise, torch.tensor([499, 499]))
    assert torch.allclose(seen[1][..., :3], known[..., :3])


def test_the_pipeline_paints_under_the_mask_alone(bundled, start):
    args = {"seed": 3, "init_image": start, "strength": 1.0}
    (sharp,) = bundled(PROMPT, mask=right_half(), mask_blur=0, **args)
    changed = np.abs(levels(sharp) - levels(start))
    assert changed[:, :32].max() == 0
    assert changed[:, 32:].mean() > 5
    (soft,) = bundled(PROMPT, mask=right_half(), mask_blur=4, **args)
    assert np.abs(levels(soft) - levels(start))[:, 30:32].max() > 0
    assert np.abs(levels(soft) - levels(start))[:, :16].max() == 0
    half_clear = right_half(mode="RGBA", white=(0, 0, 0, 255))  # what is opaque is painted
    assert np.array_equal(levels(bundled(PROMPT, mask=half_clear, mask_blur=0, **args)[0]), levels(sharp))
    with pytest.raises(UserError, match="mask is 32x32 and the picture 64x64"):
        bundled(PROMPT, mask=right_half((32, 32)), **args)
    with pytest.raises(UserError, match="give the picture to start from"):
        bundled(PROMPT, mask=right_half())


def test_the_engine_paints_what_the_pipeline_does_among_pictures_without_mask(served, bundled, start):
    common = {"prompt": PROMPT, "steps": 4, "omega": 1.0, "size": (64, 64), "strength": 0.8}
    specs = [
        PictureSpec(seed=3, start=start, mask=right_half(), **common),
        PictureSpec(seed=4, start=start, **common), PictureSpec(seed=5, **common),
    ]  # fmt: skip
    found = [levels(job.future.result(60)) for job in served.engine.submit(specs)]
    args = {"init_image": start, "strength": 0.8}
    wanted = [
        bundled(PROMPT, seed=3, mask=right_half(), mask_blur=0, **args), bundled(PROMPT, seed=4, **args),
        bundled(PROMPT, seed=5),
    ]  # fmt: skip
    for one, (other,) in zip(found, wanted, strict=True):
        assert np.abs(one - levels(other)).max() <= 1


@pytest.mark.parametrize("whole", [False, True])
def test_a1111s_mask_keeps_the_rest(img2img, start, whole):
    def paint(**fields):
        asked = {"mask": b64(right_half()), "mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": not whole}
        return picture(img2img(**{**asked, **fields}))

    before = levels(start)
    plain = paint()
    assert np.abs(plain - before)[:, :32].max() <= (1 if whole else 0)
    assert np.abs(plain - before)[:, 32:].mean() > 5
    other_half = paint(inpainting_mask_invert=1)
    assert np.abs(other_half - before)[:, 32:].max() <= 1
    assert np.abs(other_half - before)[:, :32].mean() > 5
    soft = np.abs(paint(mask_blur=4) - before)
    assert soft[:, 29:32].max() > 1
    assert soft[:, :12].max() <= 1
    assert np.abs(paint(mask_blur=None, mask_blur_x=0, mask_blur_y=0) - plain).max() <= 1
    sideways = np.abs(paint(mask_blur=None, mask_blur_x=4, mask_blur_y=0) - before)
    assert sideways[:, 29:32].max() > 1
    at_half = [paint(inpainting_fill=fill, denoising_strength=0.5) for fill in range(4)]
    for i, one in enumerate(at_half):
        assert np.abs(one - before)[:, :32].max() <= 1
        assert all(np.abs(one - other).max() > 1 for other in at_half[:i])


def test_the_masked_part_alone_is_painted_in_full_size_and_set_into_the_picture(img2img, bundled):
    large = bundled("a pink heart", seed=2)[0].resize((300, 200), Image.Resampling.BICUBIC)
    mask = Image.new("L", large.size)
    mask.paste(255, (200, 40, 260, 100))
    asked = {"init_images": [b64(large)], "mask": b64(mask), "mask_blur": 0, "inpainting_fill": 1}
    answer = img2img(**asked)
    changed = np.abs(picture(answer) - levels(large)).max(axis=2)
    assert changed.shape == (200, 300)
    assert json.loads(answer["info"])["width"] == 300
    assert changed[np.asarray(mask) == 0].max() == 0
    assert changed[np.asarray(mask) > 0].mean() > 5
    padded = picture(img2img(**asked, inpaint_full_res_padding=32))
    assert np.abs(padded - picture(answer)).max() > 1
    thin = Image.new("L", large.size)
    thin.paste(255, (0, 90, 300, 110))  # wider than a square of the picture's height: nothing is squeezed
    assert picture(img2img(**{**asked, "mask": b64(thin)})).shape == (200, 300, 3)
    whole = img2img(**asked, inpaint_full_res=False)
    assert picture(whole).shape == (64, 64, 3)


def test_resize_modes_are_heeded(img2img):
    tall = Image.new("RGB", (32, 64), "red")
    tall.paste((0, 0, 255), (0, 0, 32, 16))
    stretched, cut, drawn_out, latent = (
        img2img(init_images=[b64(tall)], resize_mode=mode, denoising_strength=0.04) for mode in range(4)
    )
    assert np.abs(picture(stretched) - picture(cut)).max() > 30
    assert np.abs(picture(drawn_out) - picture(cut)).max() > 30
    assert np.abs(picture(latent) - picture(stretched)).max() <= 1
    assert any("resize_mode 3" in note for note in json.loads(latent["info"])["notes"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": b64(Image.new("L", (64, 64)))}, "mask leaves nothing to paint"),
        ({"mask": "no picture"}, "mask is not base64"),
        ({"mask": "https://example.org/a.png"}, "mask is a link"),
        ({"mask": b64(right_half()), "mask_blur": -1}, "mask_blur is -1; allowed: 0 to 256"),
        ({"mask": b64(right_half()), "inpaint_full_res_padding": 999}, "inpaint_full_res_padding is 999"),
        ({"mask": b64(right_half()), "inpainting_fill": 4}, "inpainting_fill"),
        ({"resize_mode": 7}, "resize_mode"),
        ({"init_images": []}, "0 pictures were sent; send one"),
    ],
)
def test_masks_that_cannot_be_painted_are_refused(img2img, fields, message):
    assert message in img2img(400, **fields)["error"]["message"]


def test_openais_edits_paint_what_is_transparent(served, start):
    def edit(status=200, image=start, **more):
        files = {"image": ("a.png", encode(image))}
        if "mask" in more:
            files["mask"] = ("m.png", encode(more.pop("mask")))
        answer = served.http.post("/v1/images/edits", data={"prompt": PROMPT, "seed": 3, **more}, files=files)
        assert answer.status_code == status, answer.text
        return answer.json()

    def shown(answer):
        return levels(Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))))

    clear_right = Image.new("RGBA", (64, 64), "black")
    clear_right.paste((0, 0, 0, 0), (32, 0, 64, 64))
    changed = np.abs(shown(edit(mask=clear_right)) - levels(start))
    assert changed[:, :32].max() <= 1
    assert changed[:, 32:].mean() > 5
    holed = start.convert("RGBA")
    holed.putalpha(clear_right.getchannel("A"))
    answer = edit(image=holed)
    assert "these parts alone are painted" in answer["notes"][0]
    assert np.abs(shown(answer) - levels(start))[:, :32].max() <= 1
    for mask, message in (
        (Image.new("RGB", (64, 64)), "no transparent pixels"),
        (clear_right.resize((32, 32)), "mask is 32x32 and image"),
    ):  # fmt: skip
        assert message in edit(400, mask=mask)["error"]["message"]


def test_the_pages_socket_takes_a_mask(served, start):
    with connect(f"{served.url.replace('http', 'ws')}/ws") as page:

        def ask(**fields):
            page.send(json.dumps({"seq": 1, "prompt": PROMPT, "strength": 1, "mask_blur": 0, **fields}))
            answer = page.recv(30)
            if isinstance(answer, str):
                return json.loads(answer)["error"]["message"]
            (length,) = struct.unpack(">I", answer[:4])
            return levels(Image.open(io.BytesIO(answer[4 + length :])))

        mask = b64(right_half())
        changed = np.abs(ask(image=b64(start), mask=mask) - levels(start))
        assert changed[:, :32].max() <= 1
        assert changed[:, 32:].mean() > 5
        assert "send image too" in ask(mask=mask)
        assert "different sizes" in ask(image=b64(start.resize((32, 32))), mask=mask)


def test_the_page_and_the_api_change_as_much_where_nobody_says_how_much(served, start):
    def strength_of(content):
        said = Image.open(io.BytesIO(content)).info["parameters"]
        return float(said.partition("Denoising strength: ")[2].partition(",")[0])

    clear_right = Image.new("RGBA", (64, 64), "black")
    clear_right.paste((0, 0, 0, 0), (32, 0, 64, 64))
    for marked, usual in ((False, STRENGTHS["whole"]), (True, STRENGTHS["masked"])):
        fields = {"image": b64(start)} | ({"mask": b64(right_half())} if marked else {})
        with connect(f"{served.url.replace('http', 'ws')}/ws") as page:
            page.send(json.dumps({"seq": 1, "prompt": PROMPT, **fields}))
            answer = page.recv(30)
        (length,) = struct.unpack(">I", answer[:4])
        assert strength_of(answer[4 + length :]) == usual
        files = {"image": encode(start)} | ({"mask": encode(clear_right)} if marked else {})
        answer = served.http.post("/v1/images/edits", data={"prompt": PROMPT}, files=files).json()
        assert strength_of(base64.b64decode(answer["data"][0]["b64_json"])) == usual
    assert STRENGTHS["masked"] > STRENGTHS["whole"]


def test_a_mask_smaller_than_a_latent_frees_it_and_resizing_leaves_no_traces():
    mask = Image.new("L", (64, 32))
    mask.putpixel((9, 20), 255)
    assert mark_free(mask, 8).nonzero().tolist() == [[0, 0, 2, 1]]
    mask.putpixel((40, 3), 1)
    assert mark_free(mask, 8).sum() == 1
    assert feather(mask, 0, 0) is mask
    across = np.asarray(feather(mask, 3, 0))
    assert across[20].astype(bool).sum() > 3
    assert across[:20].max() <= 1


def test_a_hole_takes_the_colours_around_it():
    image = Image.new("RGB", (64, 48), "red")
    image.paste((0, 0, 255), (32, 0, 64, 48))
    mask = Image.new("L", image.size)
    mask.paste(255, (10, 10, 54, 38))
    spoilt = Image.composite(Image.new("RGB", image.size, "lime"), image, mask)
    filled = levels(fill_from_around(spoilt, mask))
    assert np.array_equal(filled[np.asarray(mask) == 0], levels(image)[np.asarray(mask) == 0])
    assert filled[..., 1].max() == 0
    assert filled[24, 12, 0] > 200
    assert filled[24, 51, 2] > 200
    everywhere = Image.new("L", image.size, 255)
    assert np.array_equal(levels(fill_from_around(image, everywhere)), levels(image))
