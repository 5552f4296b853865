"""The page of runs: what it shows is what they wrote, and it can be read in both colours and at 360 pixels."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from PIL import Image
from playwright.sync_api import sync_playwright

from fewstep.cli import main
from fewstep.runs.curves import HEIGHT, WIDTH, Curve, draw_chart, thin_out
from fewstep.runs.records import read_run


def make_run(folder, *, lr=1e-4, steps=100, done=100, scores=True):
    """Writes what a run writes: half of the last line too, as while it goes on."""
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"steps": steps, "lr": lr, "out": str(folder)}))
    lines = [
        json.dumps(
            {"step": n, "loss": 100 / n, "loss_heads": 0.5, "lr": lr, "images_per_second": 9.0, "seconds": n * 36}
        )
        for n in range(10, done + 1, 10)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 990, "lo')
    if scores:
        rows = [
            {"step": step, "steps": n, "prompt_accuracy": step / 100 - 0.1 / n, "fd": 400.0 / step, "sampler": "lcm"}
            for step in (50, 100) for n in (1, 2, 4, 8)
        ]  # fmt: skip
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(10, done + 1, 10):
        Image.new("RGB", (1200, 300), (step, 90, 160)).save(folder / "samples" / f"step-{step:07d}.png")
    if done == steps:
        (folder / "model").mkdir()
    return folder


def charts_of(page):
    """Returns the points of every chart by its title and the curves' names, in the picture's coordinates."""
    found = {}
    for title, body in re.findall(r"<figcaption>([^<]+)</figcaption>(<svg.*?</svg>)<ul>", page):
        groups = ET.fromstring(body).findall("g")
        found[title] = {group.find("title").text: points_of(group) for group in groups}
    return found


def points_of(group):
    return [tuple(map(float, pair.split(","))) for pair in group.find("polyline").get("points").split()]


def test_scores_that_come_before_the_log_s_next_line_stay_in_the_chart(tmp_path):
    main(["plot", str(make_run(tmp_path / "mine", done=10)), "--out", str(tmp_path / "page.html")])
    charts = charts_of((tmp_path / "page.html").read_text())
    assert max(x for curves in charts.values() for points in curves.values() for x, _ in points) <= WIDTH


def test_the_page_shows_what_a_run_wrote(tmp_path, capsys):
    main(["plot", str(make_run(tmp_path / "mine")), "--out", str(tmp_path / "page.html")])
    assert capsys.readouterr().out == f"page: {tmp_path / 'page.html'}\n"
    page = (tmp_path / "page.html").read_text()
    charts = charts_of(page)
    assert list(charts) == [
        "Loss", "Learning rate", "Images a second", "loss heads", "Prompt accuracy, more is better",
        "Fréchet distance, less is better",
    ]  # fmt: skip
    (points,) = charts["Loss"].values()
    assert len(points) == 10
    heights = [y for _, y in points]
    assert heights == sorted(heights)  # a loss that falls goes down the picture
    # Between the first and the last, places are as the values are: 10, 5 and 1.
    assert (points[1][1] - points[0][1]) / (points[-1][1] - points[0][1]) == pytest.approx(
        (10 - 5) / (10 - 1), abs=0.01
    )
    assert list(charts["Prompt accuracy, more is better"]) == [
        "1 step: 0.9 after update 100", "2 steps: 0.95 after update 100", "4 steps: 0.975 after update 100",
        "8 steps: 0.9875 after update 100",
    ]  # fmt: skip
    assert page.count('<img alt="samples after update') == 8
    assert "after update 10<" in page
    assert "after update 100<" in page
    assert "<td>finished</td><td>100 of 100</td><td>1</td><td>0.0001</td><td>1.00</td>" in page
    assert all(each.startswith("data:") for each in re.findall(r'(?:src|href)="([^"]*)"', page))


def test_several_runs_stand_side_by_side_and_one_may_go_on(tmp_path):
    folders = [make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", lr=3e-4, done=50, scores=False)]
    main(["plot", *map(str, folders), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    charts = charts_of(page)
    assert list(charts["Loss"]) == ["run (1): 1 after update 100", "run (2): 2 after update 50"]
    one, other = charts["Loss"].values()
    assert one[:5] == other  # over the same axes
    assert [title for title in charts if title.startswith("Fréchet")] == [
        f"Fréchet distance, less is better at {n}" for n in ("1 step", "2 steps", "4 steps", "8 steps")
    ]
    assert "<td>not finished</td><td>50 of 100</td>" in page
    assert "<tr><th>lr</th><td>0.0001</td><td>0.0003</td></tr>" in page
    assert "<th>out</th>" not in page


def test_settings_that_one_command_alone_has_are_named_apart(tmp_path):
    style, tuned = make_run(tmp_path / "style"), make_run(tmp_path / "tuned", lr=3e-4)
    settings = yaml.safe_load((tuned / "config.yaml").read_text())
    (tuned / "config.yaml").write_text(yaml.safe_dump({**settings, "skip": 20, "shrink": 0.5}))
    main(["plot", str(style), str(tuned), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "<tr><th>lr</th><td>0.0001</td><td>0.0003</td></tr>" in page
    assert "<th>skip</th>" not in page
    assert "Only some of the runs have these settings, as runs of different commands or versions do: " in page
    assert ": shrink, skip. Losses of different commands measure different things.</p>" in page


def test_a_run_that_has_only_begun_and_one_that_is_spoilt_are_drawn(tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("steps: 5\n")
    spoilt = make_run(tmp_path / "<b>spoilt")
    (spoilt / "metrics.jsonl").write_bytes(
        b'\xff\n[1]\n{"step": 1, "loss": 1e999}\n{"step": 2, "loss": NaN, "lr": 1}\n'
    )
    (spoilt / "samples" / "step-0000010.png").write_bytes(b"half a pict")
    main(["plot", str(begun), str(spoilt), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert "0 of 5" in page
    assert "<b>spoilt" not in page
    assert next(iter(charts_of(page))) == "Learning rate"
    assert read_run(spoilt).figures == {"lr": [(2.0, 1.0)]}


def test_the_commands_of_the_documents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs/mine")
    make_run(tmp_path / "runs/again")
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    commands = re.findall(r"^fewstep (plot .*?)(?: +#.*)?$", page, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        main(command.split())
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.html")} == {
        "runs/mine/plot.html", "compared.html",
    }  # fmt: skip


def test_a_page_of_several_runs_lies_where_one_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "one")
    make_run(tmp_path / "two")
    main(["plot", "one", "two"])
    assert capsys.readouterr().out == "page: plot.html\n"
    assert [*tmp_path.rglob("*.html")] == [tmp_path / "plot.html"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give at least one run folder"),
        (["nowhere"], "nowhere holds no run"),
        (["run", "--out", "page.txt"], "give the name of an .html file"),
    ],
)
def test_what_cannot_be_drawn_is_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["plot", *words])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "plot.html").exists()


@pytest.mark.parametrize(
    "values", [[3.0], [0.0, 0.0], [1e-6, 1e3], [-5.0, 5.0], [1e-9, 2e-9], [0.97, 0.98], [0.0, 1e12], [1e-300, 1e300]]
)
def test_axes_hold_any_values(values):
    drawn = draw_chart("x", [Curve("y", list(enumerate(values)))], end=1)
    svg = ET.fromstring(re.search(r"<svg viewBox=\"0 0 340.*?</svg>", drawn)[0])
    heights = [float(pair.split(",")[1]) for pair in svg.find("g/polyline").get("points").split()]
    assert all(0 <= y <= HEIGHT for y in heights)
    ticks = [line.get("y1") for line in svg.findall("line")]
    assert 1 <= len(ticks) <= 8
    assert len(set(ticks)) == len(ticks)
    names = [text.text for text in svg.findall("text")[: len(ticks)]]
    assert len(set(names)) == len(names)


def test_long_curves_are_thinned_to_means():
    points = [(float(i), float(i % 2)) for i in range(100_001)]
    thin = thin_out(points)
    assert len(thin) <= 401
    assert thin[-1] == points[-1]
    assert all(abs(y - 0.5) < 0.01 for _, y in thin[:-2])


def test_the_page_is_readable_on_a_telephone_in_both_colours(tmp_path):
    folders = [make_run(tmp_path / "a-run-with-a-rather-long-name"), make_run(tmp_path / "b", lr=3e-4)]
    main(["plot", *map(str, folders), "--out", str(tmp_path / "page.html")])
    place = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 360, "height": 800}, color_scheme=scheme)
            said = []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.goto((tmp_path / "page.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            assert page.evaluate("[...document.images].filter((i) => !i.naturalWidth).length") == 0
            ink, paper, label, curve = page.evaluate(
                """() => { const of = (what, name) => getComputedStyle(document.querySelector(what))[name];
                return [of('body', 'color'), of('body', 'backgroundColor'), of('svg text', 'fill'),
                of('polyline', 'stroke')] }"""
            )
            assert contrast(ink, paper) >= 7
            assert contrast(label, paper) >= 4.5
            assert contrast(curve, paper) >= 3
            size = "(t) => t.getBoundingClientRect().height"
            assert page.eval_on_selector("svg text", size) >= 10
            assert said == []
        browser.close()


def contrast(one, other):
    """Returns WCAG's contrast of two colours as a browser writes them."""

    def light(colour):
        parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
