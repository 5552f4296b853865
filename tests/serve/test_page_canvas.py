"""Painting from a drawing on the page, a dropped picture, and what is marked of it."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browsing import canvas_url, differ, drop, focused, levels, open_page, picture, shown, slide, stroke


def test_painting_starts_from_a_drawing_or_a_dropped_picture(page):
    plain = picture(page, lambda: page.fill("#prompt", "a large red circle on a white background"))
    assert "began from another" not in page.inner_text("#notes")
    page.click("#start > summary")
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 60, steps=4)
    drawn = picture(page, page.mouse.up)
    assert page.is_checked("#use-start")
    assert differ(drawn, plain)
    with page.expect_download() as download:
        page.click("#download")
    kept = Path(download.value.path()).read_bytes()
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "blue").save(file, "png")
    assert differ(picture(page, lambda: drop(page, file.getvalue(), "#canvas")), drawn)
    assert not differ(picture(page, lambda: page.uncheck("#use-start")), plain)
    page.focus("#canvas")
    assert differ(picture(page, lambda: page.keyboard.press("ArrowRight")), plain)  # without a mouse
    picture(page, lambda: drop(page, kept))
    assert "that picture began from another" in page.inner_text("#notes")
    picture(page, lambda: page.type("#prompt", " "))
    assert page.inner_text("#notes") == ""


def test_what_is_marked_alone_changes(page):
    picture(page, lambda: page.fill("#prompt", "a large red heart on a white background"))
    page.click("#start > summary")
    slide(page, "#strength", 1)
    picture(page, lambda: page.click("#take-shown"))
    url = page.evaluate("() => document.querySelector('#canvas').toDataURL('image/png')")
    kept = levels(base64.b64decode(url.partition(",")[2]))
    page.check("#draw-mask")
    slide(page, "#brush", 60)
    picture(page, lambda: stroke(page, (0.8, 0.1), (0.8, 0.9)))
    page.wait_for_selector("#history button")
    marked = picture(page, lambda: page.fill("#prompt", "a large blue star on a black background"))
    small = np.asarray(Image.fromarray(kept.astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    changed = np.abs(levels(marked) - small)
    assert changed[:, :32].max() <= 16  # the picture went through the canvas
    assert changed[8:56, 48:56].mean() > 10
    page.wait_for_selector("#history li:first-child button[title^='a large blue star']")
    held = page.locator("#history li").count()
    unmarked = picture(page, lambda: page.click("#clear-mask"))
    assert np.abs(levels(unmarked) - small)[:, :32].max() > 30
    page.wait_for_function("held => document.querySelectorAll('#history li').length > held", arg=held)
    again = picture(page, lambda: page.click("#history li:nth-child(2) button"))  # the marks come back with the rest
    assert np.abs(levels(again) - small)[:, :32].max() <= 16


@pytest.mark.parametrize("way", ["mouse", "touch", "arrows", "numbers"])
def test_every_way_to_mark_changes_only_what_is_marked(browser, served, way):
    page = browser.new_page(viewport={"width": 1000, "height": 1400}, has_touch=True)
    open_page(page, served.url)
    picture(page, lambda: page.fill("#prompt", "a large red heart on a white background"))
    page.wait_for_selector("#strip:not(.late) li:nth-child(4)")
    kept = picture(page, lambda: page.click("#change-part"))
    kept = levels(base64.b64decode(canvas_url(page).partition(",")[2]))
    small = np.asarray(Image.fromarray(kept.astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert page.is_checked("#draw-mask")
    assert focused(page) == "canvas"
    assert page.get_attribute("#mask", "aria-label").endswith(": nothing")
    slide(page, "#strength", 1)
    slide(page, "#brush", 60)
    page.fill("#prompt", "a large blue star on a black background")
    whole = marks(page)
    picture(page, lambda: MARKING[way](page))
    page.wait_for_function("() => (({ asked, seq }) => asked === seq)(document.getElementById('pictures').dataset)")
    drawn = marks(page)
    assert drawn[:, 160:].max() > 0
    assert drawn[:, :120].max() == 0
    assert page.get_attribute("#mask", "aria-label").endswith(": a part")
    changed = np.abs(levels(shown(page)) - small)
    assert changed[:, :24].max() <= 16  # the picture went through the canvas
    assert changed[8:56, 48:56].mean() > 10
    picture(page, lambda: page.click("#undo"))
    assert (marks(page) == whole).all()
    picture(page, lambda: page.click("#mark"))
    picture(page, lambda: page.click("#clear-mask"))
    assert marks(page).max() == 0
    page.focus("#canvas")
    picture(page, lambda: page.keyboard.press("Control+z"))
    assert marks(page)[10, 200] > 0
    page.close()


def test_the_strength_is_the_apis_until_it_is_moved(page):
    picture(page, lambda: page.fill("#prompt", "a large red heart on a white background"))
    page.click("#start > summary")
    picture(page, lambda: page.click("#take-shown"))
    assert page.input_value("#strength") == "0.6"
    picture(page, lambda: page.click("#mark"))
    assert [page.input_value("#strength"), page.inner_text("#strength-said")] == ["1", "1"]
    assert page.inner_text("#strength-how") == (
        "how much changes: 0.6 of a whole picture and 1 of what is marked, until you move it"
    )
    picture(page, lambda: page.click("#clear-mask"))
    assert page.input_value("#strength") == "0.6"
    picture(page, lambda: slide(page, "#strength", 0.4))
    picture(page, lambda: page.click("#mark"))
    assert page.input_value("#strength") == "0.4"


def test_on_a_phone_the_prompt_stays_beside_what_is_marked(page):
    page.set_viewport_size({"width": 360, "height": 740})
    picture(page, lambda: page.fill("#prompt", "a large red heart on a white background"))
    picture(page, lambda: page.click("#change-part"))
    page.wait_for_timeout(300)
    prompt, canvas = (page.locator(name).bounding_box() for name in ("#prompt", "#canvas"))
    assert prompt["y"] >= 0
    assert 0 <= canvas["y"] - (prompt["y"] + prompt["height"]) < 250
    assert canvas["y"] + canvas["height"] <= 740
    before = canvas["y"]
    picture(page, lambda: page.fill("#prompt", "a large blue star on a black background"))
    assert abs(page.locator("#canvas").bounding_box()["y"] - before) < 100  # writing does not lead away from it


def marks(page):
    """How opaque the marks are, 0 to 255."""
    content = base64.b64decode(canvas_url(page, "#mask").partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[..., 3]


def mark_by_mouse(page):
    stroke(page, (0.8, 0.1), (0.8, 0.9))


def mark_by_touch(page):
    box = page.locator("#canvas").bounding_box()
    finger = page.context.new_cdp_session(page)
    for kind, part in (("touchStart", 0.1), ("touchMove", 0.4), ("touchMove", 0.9), ("touchEnd", None)):
        points = [{"x": box["x"] + 0.8 * box["width"], "y": box["y"] + part * box["height"]}] if part else []
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def mark_by_arrows(page):
    page.focus("#canvas")
    for key in ["Shift+ArrowRight"] * 10 + ["Shift+ArrowUp"] * 13:
        page.keyboard.press(key)
    for _ in range(26):
        page.keyboard.down("ArrowDown")  # held: one stroke
    page.keyboard.up("ArrowDown")


def mark_by_numbers(page):
    for name, value in (("left", 70), ("top", 0), ("width", 30), ("height", 100)):
        page.fill(f"#mark-{name}", str(value))
    page.focus("#mark")
    page.keyboard.press("Enter")


MARKING = {"mouse": mark_by_mouse, "touch": mark_by_touch, "arrows": mark_by_arrows, "numbers": mark_by_numbers}
