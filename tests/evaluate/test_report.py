"""The report as a reader sees it: in a real browser, with the network cut off."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import sync_playwright

from fewstep.evaluate.report import list_columns_of, write_cell, write_report

DEMO = Path(__file__).parents[2] / "docs" / "demo"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture
def page():
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    assert browser, "this test needs Chromium: apt-get install chromium"
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        context = started.new_context(viewport={"width": 1200, "height": 900}, offline=True)
        yield context.new_page()
        started.close()


@pytest.fixture
def report(tmp_path):
    results = json.loads((DEMO / "results.json").read_text())
    write_report(tmp_path, results, Image.open(DEMO / "grid.png"))
    return tmp_path / "report.html", results


def test_a_browser_shows_the_pictures_the_figures_and_the_curves(page, report):
    file, results = report
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    picture = page.locator("img")
    shape = picture.evaluate("image => [image.complete, image.naturalWidth, image.naturalHeight]")
    assert shape == [True, *Image.open(DEMO / "grid.png").size]
    columns = list_columns_of(results["rows"])
    table = page.locator("table").first
    assert [text.strip() for text in table.locator("th").all_inner_texts()] == [c.replace("_", " ") for c in columns]
    lines = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    assert [[" ".join(text.split()) for text in line] for line in lines] == [
        [write_cell(row, column).strip() for column in columns] for row in results["rows"]
    ]
    # All of it in sight, and every figure's meaning.
    assert page.locator(".wide").first.evaluate("wide => wide.scrollWidth <= wide.clientWidth")
    assert page.locator("dt").all_inner_texts() == [
        "sampler", "network evaluations", "spacing", "guidance scale", "seconds per image", "prompt accuracy",
        "prompt accuracy unseen", "fd", "kd", "to teacher", "diversity",
    ]  # fmt: skip
    drawn = page.locator("svg")
    assert drawn.bounding_box()["height"] > 300
    # A line for every sampler in each of the two columns of every measure.
    samplers = {row["sampler"] for row in results["rows"]}
    assert drawn.locator("g[id^=axes_] > g[id^=line2d_]").count() >= 2 * len(samplers)
    assert results["protocol"]["prompts_sha256"] in page.locator(".protocol").inner_text()
    # It fits: the page itself does not scroll sideways, on a telephone either.
    for width in (1200, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_the_browser_paints_of_the_grid_is_the_grid(page, report, tmp_path):
    file, _ = report
    grid = Image.open(DEMO / "grid.png").convert("RGB")
    page.set_viewport_size({"width": grid.width + 200, "height": grid.height + 200})
    page.goto(file.as_uri())
    # At a whole pixel: between two it is smoothed, and where it stands hangs on the text above.
    page.add_style_tag(content="img { max-width: none; position: absolute; top: 0; left: 0; }")
    page.locator("img").screenshot(path=tmp_path / "seen.png")
    seen = Image.open(tmp_path / "seen.png").convert("RGB")
    assert abs(seen.width - grid.width) <= 1
    box = (0, 0, min(seen.width, grid.width), min(seen.height, grid.height))
    difference = ImageChops.difference(seen.crop(box), grid.crop(box)).convert("L")
    assert sum(difference.histogram()[9:]) / (box[2] * box[3]) < 0.02
