"""The page in a real browser."""

import re
import signal
import socket
from pathlib import Path

import numpy as np
from PIL import Image

from browsing import PROMPT, as_png, differ, drop, levels, open_page, picture, shown, slide
from fewstep.models.pipeline import Pipeline
from fewstep.serve.app import list_examples
from serving import WarmCommand, serving, with_loras


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


def test_what_the_server_refuses_is_said(page):
    picture(page, lambda: page.fill("#prompt", PROMPT))
    page.fill("#seed", "-5")
    page.locator("#seed").blur()
    assert page.input_value("#seed") == "0"
    page.fill("#seed", "99999999999999999999")
    page.wait_for_function("() => document.querySelector('#notes').textContent.includes('seed')")
    picture(page, lambda: page.fill("#seed", "1"))
    assert page.inner_text("#notes") == ""


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
