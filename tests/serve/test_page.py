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
from fewstep.serve.app import list_examples
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
    open_page(page, served.url)
    yield page
    page.close()
    assert said == []


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
    page.fill("#prompt", "")
    picture(page, lambda: page.click("#chips button:text-is('red')"))
    picture(page, lambda: page.click("#chips button:text-is('star')"))
    assert page.input_value("#prompt") == "red star"


def test_words_that_the_model_never_learnt_are_named_under_the_prompt_once_typing_pauses(page):
    picture(page, lambda: page.fill("#prompt", "a red cricle"))
    assert page.inner_text("#words") == ""  # which may be a word that is still being typed
    page.wait_for_function("() => document.querySelector('#words').textContent")
    assert 'never learnt the word "cricle" (did you mean "circle"?); it knows 38 others, ' in page.inner_text("#words")
    assert page.inner_text("#notes") == ""
    prompt, words = (page.locator(name).bounding_box() for name in ("#prompt", "#words"))
    assert 0 <= words["y"] - prompt["y"] - prompt["height"] < 20
    picture(page, lambda: page.fill("#prompt", "a red circle"))
    assert page.inner_text("#words") == ""
    picture(page, lambda: page.fill("#prompt", "a red circ"))
    picture(page, lambda: page.type("#prompt", "le", delay=20))
    page.wait_for_timeout(800)
    assert page.inner_text("#words") == ""


def test_an_example_is_there_before_a_word_is_typed(page, bundled):
    prompt = page.input_value("#prompt")
    assert prompt in bundled.vocabulary.examples
    assert np.abs(levels(shown(page)) - np.asarray(bundled(prompt)[0]).astype(int)).max() <= 1
    assert page.inner_text("#example").startswith("An example that scenes-lcm has just painted.")
    assert page.locator("#history li").count() == 0
    facts = page.inner_text("#facts").split("\n")
    assert facts[1::2] == ["scenes-lcm", "64 × 64", "fp32 on cpu", "4 steps", "1 to 4"]
    other = picture(page, lambda: page.click("#examples button:text-is('a cyan star')"))
    assert differ(other, as_png(bundled(prompt)[0]))
    assert page.input_value("#prompt") == "a cyan star"
    assert page.locator("#example").is_hidden()
    page.wait_for_selector("#history button[title^='a cyan star']")


def test_a_model_that_reads_any_words_has_an_example_too(bundled, monkeypatch):
    assert list_examples(bundled)[0] in bundled.vocabulary.examples
    monkeypatch.setattr(bundled, "vocabulary", None)
    assert list_examples(bundled)[0] == "a lighthouse on a cliff at sunrise"


def test_the_film_strip_follows_a_rest_and_its_frames_are_shown_large(page):
    last = picture(page, lambda: page.fill("#prompt", "a pink heart"))
    assert page.locator("#strip.late").count() == 1
    page.wait_for_selector("#strip:not(.late) li:nth-child(4)")
    assert page.locator("#strip li").all_inner_texts() == [f"step {i}" for i in (1, 2, 3, 4)]
    assert not differ(shown(page), last)
    assert page.locator("#strip button[aria-pressed=true]").inner_text() == "step 4"
    page.click("#strip li:first-child button")
    assert differ(shown(page), last)
    assert page.get_attribute("#pictures img", "alt") == "a pink heart, seed 0, after step 1"
    assert page.locator("#strip button[aria-pressed=true]").inner_text() == "step 1"
    picture(page, lambda: page.uncheck("#previews"))
    assert page.locator("#strip").is_hidden()


def test_counts_stand_side_by_side(page):
    picture(page, lambda: page.check("#compare"))
    page.wait_for_function("() => document.querySelectorAll('#pictures img').length === 4")
    captions = page.locator("#pictures figcaption").all_inner_texts()
    assert captions == ["1 step", "2 steps", "4 steps", "8 steps"]
    assert page.is_disabled("#steps")
    assert page.locator("#strip").is_hidden()
    assert page.inner_text("#download") == "Download the picture of 8 steps"
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith("-8-steps.png")
    page.wait_for_selector("#history button[title$='seed 0, 1, 2, 4, 8 steps']")


def test_sliders_of_loras_act_at_once(browser, bundled):
    with serving(Pipeline(with_loras()), loras=("lora0", "lora1")) as served:
        page = browser.new_page()
        open_page(page, served.url)
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


def canvas_url(page, name="#canvas"):
    return page.evaluate("name => document.querySelector(name).toDataURL('image/png')", name)


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


def test_what_the_server_refuses_is_said(page):
    picture(page, lambda: page.fill("#prompt", PROMPT))
    page.fill("#seed", "-5")
    page.locator("#seed").blur()
    assert page.input_value("#seed") == "0"
    page.fill("#seed", "99999999999999999999")
    page.wait_for_function("() => document.querySelector('#notes').textContent.includes('seed')")
    picture(page, lambda: page.fill("#seed", "1"))
    assert page.inner_text("#notes") == ""


WIDTHS = (360, 768, 1440, 3840)


def test_it_is_readable_from_a_phone_to_a_wall(page):
    page.set_viewport_size({"width": 360, "height": 800})
    place = page.locator("#prompt").bounding_box()
    picture(page, lambda: page.fill("#prompt", PROMPT))
    assert page.locator("#prompt").bounding_box() == place  # the picture does not push away what is being typed
    for summary in page.locator("main summary").all():
        summary.click()
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": max(800, width * 9 // 16)})
        wide, smallest, picture_wide = page.evaluate(
            """() => [
                 document.documentElement.scrollWidth,
                 Math.min(...[...document.querySelectorAll('body *')].filter((e) => e.checkVisibility())
                   .map((e) => parseFloat(getComputedStyle(e).fontSize))),
                 document.querySelector('#pictures img').clientHeight,
               ]"""
        )
        assert wide <= width
        assert smallest >= max(12, width / 200)
        assert picture_wide >= min(260, width) if width < 1000 else picture_wide >= width / 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    picture(page, lambda: page.fill("#prompt", "a red cricle"))
    page.wait_for_selector("#strip:not(.late) li:nth-child(4)")
    page.wait_for_selector("#history li")
    for summary in page.locator("main summary").all():
        if summary.evaluate("(e) => !e.parentElement.open"):
            summary.click()
    picture(page, lambda: page.click("#mark"))
    said = check_by(Axe(), page)
    picture(page, lambda: page.check("#compare"))
    page.set_viewport_size({"width": 360, "height": 800})
    said += check_by(Axe(), page)
    page.click("#show-keys")
    said += check_by(Axe(), page)
    page.goto(f"{page.url}docs")
    page.wait_for_selector("h2:has-text('/v1/images/generations')")
    assert said + check_by(Axe(), page) == []


def check_by(axe, page):
    """Returns what axe finds wrong, and where."""
    found = axe.run(page).response["violations"]
    return [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found]


def test_everything_is_reached_by_keys_and_nothing_holds_them(page):
    page.locator("#prompt").focus()
    reached, seen = [], set()
    while (place := focused(page)) not in seen and len(seen) < 150:
        seen.add(place)
        reached.append(place)
        outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or place == "BODY", place
        page.keyboard.press("Tab")
    wanted = page.evaluate(
        """() => [...document.querySelectorAll('a, button, input, select, textarea, summary, canvas[tabindex]')]
             .filter((e) => !e.disabled && e.checkVisibility()).map((e) => e.id || e.textContent || e.tagName)"""
    )
    assert sorted(reached) == sorted([*wanted, "BODY"])
    assert {"seed", "roll", "steps", "guidance", "compare", "download", "change-part", "show-keys"} <= set(reached)


def focused(page):
    return page.evaluate(
        "() => ((e) => e === document.body ? 'BODY' : e.id || e.textContent || e.tagName)(document.activeElement)"
    )


def test_keys_paint_and_say_what_they_do(page):
    page.focus("#prompt")
    picture(page, lambda: page.keyboard.press("Control+Enter"))
    assert page.input_value("#seed") == "0"
    picture(page, lambda: page.keyboard.press("Meta+Shift+Enter"))
    assert page.input_value("#seed") != "0"
    page.keyboard.press("End")
    page.keyboard.type("?/")  # letters, in a field
    assert page.input_value("#prompt").endswith("?/")
    assert page.locator("#keys").is_hidden()
    page.keyboard.press("Escape")
    page.focus("#roll")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    assert "paints what stands there" in page.inner_text("#keys")
    page.keyboard.press("Escape")
    assert page.locator("#keys").is_hidden()
    assert focused(page) == "roll"
    page.keyboard.press("/")
    assert focused(page) == "prompt"


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
    open_page(page, f"http://127.0.0.1:{port}/")
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
        open_page(first, served.url)
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
        assert not re.search(r"https?://(?!127|www\.w3\.org/2000/svg)", file.read_text()), file.name
