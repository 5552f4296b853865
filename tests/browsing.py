"""The page in a real browser: what stands on it, and hands that act on it."""

import base64
import io
import shutil

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

PROMPT = "a small red star above a blue ring"


def open_page(page, url):
    """Waits until the page shows its example."""
    page.goto(url)
    page.wait_for_selector("#state:has-text('ready')")
    page.wait_for_selector("#pictures[data-seq] img")
    page.wait_for_selector("#strip li:nth-child(4)")


def sequence(page):
    return int(page.get_attribute("#pictures", "data-seq") or 0)


def picture(page, act):
    """What stands on the page once it has painted what `act` asks for."""
    before = sequence(page)
    act()
    page.wait_for_function("before => Number(document.getElementById('pictures').dataset.seq) > before", arg=before)
    page.wait_for_timeout(150)  # further letters, further pictures
    page.wait_for_function("() => document.querySelector('#latency').textContent")
    return shown(page)


def shown(page):
    """The first picture as a PNG; the page itself may fetch nothing but from its server."""
    url = page.evaluate(
        """() => {
             const image = document.querySelector('#pictures img');
             const canvas = document.createElement('canvas');
             [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
             canvas.getContext('2d').drawImage(image, 0, 0);
             return canvas.toDataURL('image/png');
           }"""
    )
    return base64.b64decode(url.partition(",")[2])


def levels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def as_png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def differ(one, other, least=0.3):
    return np.abs(levels(one) - levels(other)).mean() > least


def slide(page, name, value):
    page.locator(name).evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }", str(value)
    )


def stroke(page, *points):
    """Draws on the canvas with the pointer, in parts of its sides."""
    box = page.locator("#canvas").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=8)
    page.mouse.up()


def canvas_url(page, name="#canvas"):
    return page.evaluate("name => document.querySelector(name).toDataURL('image/png')", name)


@pytest.fixture(scope="module")
def browser():
    place = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, served):
    """The page, ready; no error may be left on its console."""
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    open_page(page, served.url)
    yield page
    page.close()
    assert said == []


def drop(page, content, place="body"):
    page.evaluate(
        """([bytes, place]) => {
             const data = new DataTransfer();
             data.items.add(new File([new Uint8Array(bytes)], 'a.png', { type: 'image/png' }));
             document.querySelector(place).dispatchEvent(new DragEvent('drop', { bubbles: true, dataTransfer: data }));
           }""",
        [list(content), place],
    )


def focused(page):
    return page.evaluate(
        "() => ((e) => e === document.body ? 'BODY' : e.id || e.textContent || e.tagName)(document.activeElement)"
    )
