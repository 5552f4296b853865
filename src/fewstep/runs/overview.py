"""Runs on one page of HTML that needs nothing beside it: curves, scores by numbers of steps, samples over time."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape

from PIL import Image

from fewstep.errors import show
from fewstep.evaluate.columns import Column, order_by_direction
from fewstep.evaluate.metrics import list_columns
from fewstep.runs.curves import Curve, draw_chart
from fewstep.runs.records import RunRecord
from fewstep.train.config import NOT_THE_RUN

_MOST_SAMPLES, _MOST_SIDE = 8, 1024
"""Pictures of a run on the page, and their longer side in pixels."""
_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1d2025, #e4e6ea); --paper: light-dark(#fff, #16181c);
  --soft: light-dark(#5c6370, #a3a9b4); --line: light-dark(#dfe2e7, #343941); }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 80rem; padding: 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; }
figure > svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); }
ul { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .2rem 0 0; padding: 0;
  font-size: 13px; }
li svg { width: 1.5rem; height: .5rem; margin-right: .35rem; vertical-align: middle; }
polyline, li line { fill: none; stroke: var(--c); stroke-width: 1.8; } circle { fill: var(--c); }
.c0 { --c: light-dark(#0b62c4, #6db3ff); } .c1 { --c: light-dark(#b4480a, #ffa261); }
.c2 { --c: light-dark(#10793b, #63d08c); } .c3 { --c: light-dark(#8a35a8, #d79bf0); }
.c4 { --c: light-dark(#a3204a, #ff8fab); } .c5 { --c: light-dark(#56606e, #b9c1cc); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
.strip { display: flex; gap: .8rem; overflow-x: auto; scroll-snap-type: x proximity; padding-bottom: .5rem; }
.strip figure { flex: 0 0 auto; width: min(100%, 26rem); scroll-snap-align: start; }
.strip img { width: 100%; height: auto; display: block; } .strip figcaption { font-weight: 400; color: var(--soft); }
"""
_FIRST = {"loss": "Loss", "lr": "Learning rate", "images_per_second": "Images a second"}
_NOT_DRAWN = ("seconds",)


def write_page(runs: Sequence[RunRecord]) -> str:
    """Makes the page. Curves of several runs stand in one chart, and scores in one for each number of steps."""
    names = _tell_apart(runs)
    title = escape("fewstep: " + ", ".join(names))
    end = max(run.steps for run in runs)
    parts = [f"<h1>{title}</h1>", f'<div class="wide">{_tabulate(runs, names)}</div>']
    if charts := list(_draw_figures(runs, names, end)):
        parts.append(f'<h2>Training</h2><div class="charts">{"".join(charts)}</div>')
    if charts := list(_draw_scores(runs, names, end)):
        parts.append(f'<h2>Quality along the training</h2><div class="charts">{"".join(charts)}</div>')
    for run, name in zip(runs, names, strict=True):
        if strip := "".join(_show_samples(run)):
            parts.append(
                f'<h2>Samples of {escape(name)}</h2><div class="strip" tabindex="0" role="group" '
                f'aria-label="samples over time">{strip}</div>'
            )
    if differing := _tabulate_differing(runs, names):
        parts.append(f'<h2>Settings that differ</h2><div class="wide">{differing}</div>')
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _tell_apart(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the runs' names, with a number behind one that another has too."""
    names = [show(run.name) for run in runs]
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _tabulate(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    rows = []
    for run, name in zip(runs, names, strict=True):
        seconds = run.figures.get("seconds")
        cells = [
            name,
            "finished" if run.finished else "not finished",
            f"{run.steps:,} of {run.settings.get('steps', '?')}",
            *(f"{points[-1][1]:.4g}" if (points := run.figures.get(figure)) else "" for figure in ("loss", "lr")),
            f"{seconds[-1][1] / 3600:.2f}" if seconds else "",
        ]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    head = "".join(f"<th>{each}</th>" for each in ("run", "", "updates", "loss", "learning rate", "hours"))
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _draw_figures(runs: Sequence[RunRecord], names: Sequence[str], end: float) -> Iterator[str]:
    """Draws a chart for every figure of the log: the loss and the learning rate first."""
    every = dict.fromkeys([*_FIRST, *(figure for run in runs for figure in run.figures)])
    for figure in every:
        curves = [Curve(name, run.figures.get(figure, [])) for run, name in zip(runs, names, strict=True)]
        if figure not in _NOT_DRAWN and any(curve.points for curve in curves):
            yield draw_chart(_FIRST.get(figure, figure.replace("_", " ")), curves, end=end)


def _draw_scores(runs: Sequence[RunRecord], names: Sequence[str], end: float) -> Iterator[str]:
    """Draws the scores that have curves in a report too: of one run, a line for each number of steps."""
    for column in order_by_direction(each for each in list_columns() if each.curve_label):
        found = {score for run in runs for score in run.scores if score.rpartition("/")[0] == column.name}
        counts = sorted(found, key=lambda score: float(score.rpartition("/")[2]))
        if len(runs) == 1 and counts:
            curves = [Curve(_say_steps(score), runs[0].scores[score]) for score in counts]
            yield draw_chart(_begin_page(column), curves, end=end)
        elif counts:
            for score in counts:
                curves = [Curve(name, run.scores.get(score, [])) for run, name in zip(runs, names, strict=True)]
                yield draw_chart(f"{_begin_page(column)} at {_say_steps(score)}", curves, end=end)


def _begin_page(column: Column) -> str:
    better = {"more": ", more is better", "less": ", less is better", None: ""}[column.better]
    return f"{column.curve_label[0].upper()}{column.curve_label[1:]}{better}"


def _say_steps(score: str) -> str:
    count = score.rpartition("/")[2]
    return f"{count} step" + ("" if count == "1" else "s")


def _show_samples(run: RunRecord) -> Iterator[str]:
    """Yields the first and the last grid of samples, and some between, as pictures of at most 1024 pixels."""
    most = min(_MOST_SAMPLES, len(run.samples))
    chosen = [run.samples[round(i * (len(run.samples) - 1) / max(most - 1, 1))] for i in range(most)]
    for step, file in chosen:
        try:
            with Image.open(file, formats=["PNG"]) as image:
                picture = image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # one that is being written, or was spoilt
        picture.thumbnail((_MOST_SIDE, _MOST_SIDE))
        box = io.BytesIO()
        picture.save(box, format="webp", quality=90)
        data = base64.b64encode(box.getvalue()).decode()
        yield (
            f'<figure><img alt="samples after update {step}" width="{picture.width}" height="{picture.height}" '
            f'src="data:image/webp;base64,{data}"><figcaption>after update {step:,}</figcaption></figure>'
        )


def _tabulate_differing(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Writes the settings that all have and not alike, and below them names those that only some have."""
    settings = dict.fromkeys(each for run in runs for each in run.settings if each not in NOT_THE_RUN)
    rows, apart = [], []
    for each in settings:
        if any(each not in run.settings for run in runs):
            apart.append(show(each, 200))
            continue
        values = [show(run.settings[each], 200) for run in runs]
        if len(set(values)) > 1:
            rows.append(f"<tr><th>{escape(each)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    table = f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>" if rows else ""
    note = (
        "<p>Only some of the runs have these settings, as runs of different commands or versions do: "
        f"{escape(', '.join(apart))}. Losses of different commands measure different things.</p>"
    )
    return table + (note if apart else "")
