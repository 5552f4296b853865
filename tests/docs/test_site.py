"""The documentation site: it builds strictly, and has every page and every option."""

import dataclasses
import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import sync_playwright

from fewstep.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tools"))

import commands_page  # noqa: E402


class Reader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose `!ENV` takes a default where a variable is not set."""


Reader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node)[-1])
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(), Reader)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the built site; any warning fails it, as a link that leads nowhere is."""
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out], cwd=ROOT, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_the_site_builds_strictly_and_fetches_nothing_from_elsewhere(built):
    pages = sorted(built.rglob("*.html"))
    assert len(pages) >= 30
    for page in pages:
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"?([^\"\s>]+)", text)
        fetched += re.findall(r"<link[^>]*rel=\"?stylesheet\"?[^>]*href=\"?([^\"\s>]+)", text)
        assert [each for each in fetched if re.match(r"(https?:)?//", each)] == [], page


def test_pages_fit_a_telephone_and_show_their_pictures(built):
    place = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))))
    handler = functools.partial(QuietHandler, directory=str(built))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme="dark")
        said = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        for name in ("", "concepts/", "results/", "reference/commands/", "reference/python/"):
            page.goto(f"http://127.0.0.1:{server.server_port}/{name}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
            assert page.evaluate("[...document.images].filter((i) => !i.naturalWidth).map((i) => i.src)") == [], name
            assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"
        assert said == []
        browser.close()
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing."""

    def log_message(self, *_said):
        pass


def test_lists_and_tables_are_read_as_such(built):
    """The site's Markdown wants an empty line before a list, and four spaces in one that lies within another."""
    torn = []
    for page in sorted(built.rglob("index.html")):
        body = re.sub(r"<(pre|code)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
        paragraphs = re.findall(r"<p>(.*?)</p>", body, re.DOTALL)
        torn += [(page, each[:200]) for each in paragraphs if re.search(r"^(- |\d+\. |\|)", each, re.MULTILINE)]
    assert torn == []


def test_the_site_has_every_page():
    def walk(entry):
        return [entry] if isinstance(entry, str) else [x for value in entry for x in walk(value)] if isinstance(
            entry, list
        ) else [x for value in entry.values() for x in walk(value)]  # fmt: skip

    listed = walk(SITE["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_page_of_commands_is_up_to_date_and_has_every_option():
    page = commands_page.PAGE.read_text()
    assert page == commands_page.write_page(), "python tools/commands_page.py writes it anew"
    for name in COMMANDS:
        section = page.partition(f"\n## fewstep {name}\n")[2].partition("\n## ")[0]
        config = commands_page._make_default(name)
        if "[all options of `fewstep distill`]" in section:
            section += page.partition("\n## fewstep distill\n")[2].partition("\n## ")[0]
        anchors = set(re.findall(r"\{ #([\w-]+) \}\n:   ", section))
        for field in dataclasses.fields(config):
            option = field.name.replace("_", "-")
            assert {f"{name.replace(' ', '-')}-{option}", f"distill-{option}"} & anchors, (name, option)


def test_lines_of_the_documents_are_short():
    """At most 120 columns, but for rows of tables, which cannot be broken."""
    for page in sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")]):
        long = [line for line in page.read_text().splitlines() if len(line) > 120 and not line.lstrip().startswith("|")]
        assert long == [], page


def test_formulas_stand_beside_the_code_that_is_there():
    source = "\n".join(
        line.strip() for file in sorted((ROOT / "src").rglob("*.py")) for line in file.read_text().splitlines()
    )
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "concepts.md").read_text(), re.DOTALL)
    assert len(blocks) >= 8
    for block in blocks:
        assert "\n".join(line.strip() for line in block.strip().splitlines()) in source, block
