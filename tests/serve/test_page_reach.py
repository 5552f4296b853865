"""Whoever comes to the page: on a phone or a wall, by keys, with a reader of screens."""

import pytest

from browsing import PROMPT, focused, picture

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
