"""The page in a real browser."""

import base64
import io
import re
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from fewstep.models.pipeline import Pipeline
from serving import WarmCommand, serving, with_loras

PROMPT = "a small red star above a blue ring"


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
    page.goto(served.url)
    page.wait_for_selector("#state:has-text('ready')")
    yield page
    page.close()
    assert said == []


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


def differ(one, other, least=0.3):
    return np.abs(levels(one) - levels(other)).mean() > least


def slide(page, name, value):
    page.locator(name).evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }", str(value)
    )


def test_typing_paints_and_every_setting_acts(page, bundled):
    first = picture(page, lambda: page.fill("#prompt", PROMPT))
    assert np.abs(levels(first) - np.asarray(bundled(PROMPT)[0]).astype(int)).max() <= 1
    assert differ(picture(page, lambda: page.type("#prompt", " on a black background")), first)
    second = picture(page, lambda: page.fill("#seed", "7"))
    assert differ(picture(page, lambda: page.fill("#seed", "0")), second)
    for name, value in (("#steps", 1), ("#guidance", 4)):
        before = shown(page)
        now = picture(page, lambda name=name, value=value: slide(page, name, value))
        assert differ(now, before, least=0.02), name  # this model heeds guidance little
    before = shown(page)
    assert differ(picture(page, lambda: page.click("#roll")), before)


def test_an_unlocked_seed_is_another_for_every_letter(page):
    picture(page, lambda: page.fill("#prompt", PROMPT))
    picture(page, lambda: page.type("#prompt", " "))
    assert page.input_value("#seed") == "0"
    page.uncheck("#lock")
    picture(page, lambda: page.type("#prompt", " "))
    assert page.input_value("#seed") != "0"


def test_chips_say_what_can_be_asked(page):
    picture(page, lambda: page.click("#chips button:text-is('red')"))
    picture(page, lambda: page.click("#chips button:text-is('star')"))
    assert page.input_value("#prompt") == "red star"


def test_words_that_the_model_never_learnt_are_named_under_the_prompt_once_typing_pauses(page):
    picture(page, lambda: page.fill("#prompt", "a red cricle"))
    assert page.inner_text("#words") == ""  # which may be a word that is still being typed
    page.wait_for_function("() => document.querySelector('#words').textContent")
    assert 'never learnt the word "cricle" (did you mean "circle"?); it knows: a, above, ' in page.inner_text("#words")
    assert page.inner_text("#notes") == ""
    prompt, words = (page.locator(name).bounding_box() for name in ("#prompt", "#words"))
    assert 0 <= words["y"] - prompt["y"] - prompt["height"] < 20
    picture(page, lambda: page.fill("#prompt", "a red circle"))
    assert page.inner_text("#words") == ""
    picture(page, lambda: page.fill("#prompt", "a red circ"))
    picture(page, lambda: page.type("#prompt", "le", delay=20))
    page.wait_for_timeout(800)
    assert page.inner_text("#words") == ""


def test_steps_are_shown_and_counts_stand_side_by_side(page):
    page.check("#previews")
    seen = page.evaluate(
        """() => new Promise((done) => {
             const seen = [];
             new MutationObserver(() => {
               for (const each of document.querySelectorAll('#pictures figcaption')) seen.push(each.textContent);
               if (document.querySelector('#latency').textContent) done(seen);
             }).observe(document.querySelector('main'), { childList: true, subtree: true });
             const prompt = document.getElementById('prompt');
             prompt.value = 'a pink heart';
             prompt.dispatchEvent(new Event('input'));
           })"""
    )
    assert [text for i, text in enumerate(seen) if text not in seen[:i]] == [f"step {i} of 4" for i in (1, 2, 3, 4)]
    assert page.locator("#pictures figcaption").all_inner_texts() == [f"step {i} of 4" for i in (1, 2, 3, 4)]
    page.uncheck("#previews")
    picture(page, lambda: page.check("#compare"))
    page.wait_for_function("() => document.querySelectorAll('#pictures img').length === 4")
    captions = page.locator("#pictures figcaption").all_inner_texts()
    assert captions == ["1 step", "2 steps", "4 steps", "8 steps"]
    assert page.is_disabled("#steps")
    assert page.inner_text("#download") == "Download the picture of 8 steps"
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith("-8-steps.png")
    page.wait_for_selector("#history button[title$='seed 0, 1, 2, 4, 8 steps']")


def test_sliders_of_loras_act_at_once(browser, bundled):
    with serving(Pipeline(with_loras()), loras=("lora0", "lora1")) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.wait_for_selector("#state:has-text('ready')")
        both = picture(page, lambda: page.fill("#prompt", PROMPT))
        slide(page, "#lora-0", 0)
        one = picture(page, lambda: slide(page, "#lora-1", 0.5))
        none = picture(page, lambda: page.get_by_label("lora1").fill("0"))
        page.close()
    assert differ(both, one)
    assert differ(one, none)
    assert np.abs(levels(none) - np.asarray(bundled(PROMPT)[0]).astype(int)).max() <= 1


def test_history_brings_all_settings_back(page):
    first = picture(page, lambda: page.fill("#prompt", PROMPT))
    page.wait_for_selector("#history button")
    for act in (lambda: page.fill("#prompt", "a pink heart"), lambda: slide(page, "#steps", 2)):
        picture(page, act)
    picture(page, lambda: page.fill("#seed", "5"))
    page.wait_for_function("() => document.querySelectorAll('#history button').length === 2")
    again = picture(page, lambda: page.click("#history li:last-child button"))
    assert [page.input_value(name) for name in ("#prompt", "#seed", "#steps")] == [PROMPT, "0", "4"]
    assert not differ(again, first)


def drop(page, content, place="body"):
    page.evaluate(
        """([bytes, place]) => {
             const data = new DataTransfer();
             data.items.add(new File([new Uint8Array(bytes)], 'a.png', { type: 'image/png' }));
             document.querySelector(place).dispatchEvent(new DragEvent('drop', { bubbles: true, dataTransfer: data }));
           }""",
        [list(content), place],
    )


def test_a_download_dropped_in_again_has_its_settings(page, tmp_path):
    picture(page, lambda: page.fill("#prompt", f"{PROMPT}, “ein Stern”"))
    slide(page, "#steps", 3)
    first = picture(page, lambda: page.fill("#seed", "9"))
    with page.expect_download() as download:
        page.click("#download")
    assert re.fullmatch(r"a-small-red-star.*-seed9\.png", download.value.suggested_filename)
    download.value.save_as(tmp_path / "picture.png")
    assert "Seed: 9" in Image.open(tmp_path / "picture.png").info["parameters"]
    picture(page, lambda: page.fill("#prompt", "a pink heart"))
    slide(page, "#steps", 8)
    again = picture(page, lambda: drop(page, (tmp_path / "picture.png").read_bytes()))
    assert [page.input_value(name) for name in ("#prompt", "#seed", "#steps")] == [f"{PROMPT}, “ein Stern”", "9", "3"]
    assert not differ(again, first)


def test_painting_starts_from_a_drawing_or_a_dropped_picture(page):
    plain = picture(page, lambda: page.fill("#prompt", "a large red circle on a white background"))
    assert "began from another" not in page.inner_text("#notes")
    page.click("summary")
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


def stroke(page, *points):
    """Draws on the canvas with the pointer, in parts of its sides."""
    box = page.locator("#canvas").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=8)
    page.mouse.up()


def test_what_is_marked_alone_changes(page):
    picture(page, lambda: page.fill("#prompt", "a large red heart on a white background"))
    page.click("summary")
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


def test_what_the_server_refuses_is_said(page):
    picture(page, lambda: page.fill("#prompt", PROMPT))
    page.fill("#seed", "-5")
    page.locator("#seed").blur()
    assert page.input_value("#seed") == "0"
    page.fill("#seed", "99999999999999999999")
    page.wait_for_function("() => document.querySelector('#notes').textContent.includes('seed')")
    picture(page, lambda: page.fill("#seed", "1"))
    assert page.inner_text("#notes") == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_narrow_and_dark_and_labelled(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 800})
    place = page.locator("#prompt").bounding_box()
    picture(page, lambda: page.fill("#prompt", PROMPT))
    assert page.locator("#prompt").bounding_box() == place  # the picture does not push away what is being typed
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    unlabelled = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, select, canvas, button, img')].filter((e) =>
             !(e.labels?.length || e.ariaLabel || e.textContent.trim() || e.title || e.alt)).map((e) => e.outerHTML)"""
    )
    assert unlabelled == []
    contrast = page.evaluate(
        """() => {
             const light = (colour) => {
               const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255)
                 .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
               return 0.2126 * r + 0.7152 * g + 0.0722 * b;
             };
             const back = light(getComputedStyle(document.body).backgroundColor);
             return ['body', 'header p', '#latency', 'footer', 'a'].map((place) => {
               const front = light(getComputedStyle(document.querySelector(place)).color);
               return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
             });
           }"""
    )
    assert min(contrast) >= 4.5
    page.locator("#prompt").focus()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
    assert {"seed", "roll", "steps", "guidance", "compare", "download", "BUTTON"} <= reached


def test_the_pages_of_the_api_name_every_route(page, served):
    page.goto(f"{served.url}/docs")
    page.wait_for_selector("h2:has-text('/v1/images/generations')")
    for name in ("/v1/images/edits", "/sdapi/v1/txt2img", "/healthz"):
        assert page.locator(f"h2:has-text('{name}')").count() == 1
    assert page.locator("td:text-is('guidance_scale')").count() >= 1


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_server_that_dies_is_missed_and_found_again(browser):
    port = free_port()
    server = WarmCommand(port=port)
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#state:has-text('ready')")
    picture(page, lambda: page.fill("#prompt", PROMPT))
    assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
    page.wait_for_selector("#state.bad:has-text('the server does not answer')")
    server = WarmCommand(port=port)
    page.wait_for_selector("#state:has-text('ready')", timeout=30_000)
    picture(page, lambda: page.fill("#prompt", "a pink heart"))
    assert page.input_value("#prompt") == "a pink heart"
    page.close()
    status, said, wrong = server.end()
    assert (status, wrong) == (0, "")
    assert "what was accepted is done" in said


def test_a_page_that_made_room_for_another_goes_on_when_it_is_used(browser, bundled):
    with serving(bundled, sockets=1) as served:
        first, second = browser.new_page(), browser.new_page()
        first.goto(served.url)
        first.wait_for_selector("#state:has-text('ready')")
        second.goto(served.url)
        first.wait_for_selector("#state:has-text('this page rests')")
        second.wait_for_selector("#state:has-text('ready')")
        painted = picture(first, lambda: first.fill("#prompt", PROMPT))
        assert np.abs(levels(painted) - np.asarray(bundled(PROMPT)[0]).astype(int)).max() <= 1
        first.wait_for_selector("#state:has-text('ready')")
        second.wait_for_selector("#state:has-text('this page rests')")
        first.close()
        second.close()


def test_the_page_asks_nothing_of_other_hosts():
    for file in (Path(__file__).parents[2] / "src" / "fewstep" / "serve" / "page").iterdir():
        assert not re.search(r"https?://(?!127)", file.read_text()), file.name
