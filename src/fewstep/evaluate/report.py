"""An evaluation on paper: results.json, table.md, grid.png, and one page with all of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.evaluate.protocol import RESULTS_FILE
from fewstep.files import write_whole

GRID_FILE = "grid.png"
TRUSTED = 5000
"""Pictures from which on a Fréchet distance hardly depends on their number."""
NAMES = {
    "teacher": "teacher", "ddim": "DDIM", "dpm-solver-2": "DPM-Solver-2", "dpm++": "DPM-Solver++ (2M)",
    "euler": "Euler", "unipc": "UniPC", "lcm": "LCM",
}  # fmt: skip
_CURVES = {
    "prompt_accuracy": "prompt accuracy", "share_in_style": "share in style", "clip_score": "CLIP score",
    "fd": "Fréchet distance", "to_teacher": "distance to the teacher's pictures",
    "diversity": "diversity within a prompt",
}  # fmt: skip
_MEANINGS = {
    "network evaluations": "Of the UNet, for one picture; a guided baseline asks it twice a step.",
    "spacing": "Where in the schedule a baseline's steps stand: the best of those tried, as its guidance is.",
    "seconds per image": "To sample and decode one, here and then: compare within one report, and on a quiet machine.",
    "prompt accuracy": "Share of pictures in which every attribute of the prompt is right. More is better.",
    "prompt accuracy unseen": "The same for prompts of a kind that no training picture shows.",
    "share in style": "Of pictures that have the look of the data. More is better.",
    "clip score": "100 times the cosine of CLIP's features of picture and prompt. More is better.",
    "fd": "Fréchet distance to real pictures in the extractor's features. Less is better.",
    "kd": "Unbiased kernel distance to them (KID), with its standard error; near 0 where there is none.",
    "to teacher": "Distance of a picture's latent from the teacher's own of the same noise. Less is truer to it.",
    "diversity": "How much pictures of one prompt differ, as a share of how much real pictures do.",
}
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem;
  color: light-dark(#222, #ddd); background: light-dark(#fff, #181818); }
h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid light-dark(#ddd, #444); text-align: right; }
td { white-space: nowrap; } td small { display: block; opacity: .75; }
th { background: light-dark(#f4f4f4, #2a2a2a); vertical-align: bottom; }
th:first-child, td:first-child, .protocol td { text-align: left; }
.protocol td { white-space: normal; overflow-wrap: anywhere; }
tr.lcm td { background: light-dark(#eef6ee, #1d2f1f); }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1.5rem; }
img, svg { max-width: 100%; height: auto; background: #fff; }
"""


def write_report(out: Path, results: Mapping[str, Any], grid: Image.Image) -> None:
    """Writes all four files into `out`; each is whole at any time."""
    picture = io.BytesIO()
    grid.save(picture, format="png", optimize=True)
    files = {
        GRID_FILE: picture.getvalue(),
        "table.md": "\n".join(markdown_table(results["rows"])).encode() + b"\n",
        "report.html": page(results, picture.getvalue()).encode(),
        RESULTS_FILE: json.dumps(results, indent=2).encode() + b"\n",
    }
    for name, content in files.items():
        with write_whole(out / name) as draft:
            draft.write_bytes(content)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every column that some row has, in order; the bounds of intervals stand with their values."""
    found = dict.fromkeys(name for row in rows for name in row)
    return [name for name in found if not name.endswith(("_low", "_high", "_error"))]


def cell_text(row: Mapping[str, Any], column: str) -> str:
    """The value, with its 95 % interval or standard error where it has one."""
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if (error := row.get(f"{column}_error")) is not None:
        return f"{value:.3g} ± {error:.2g}"
    if (low := row.get(f"{column}_low")) is not None:
        return f"{value:.3g} ({low:.3g} to {row[f'{column}_high']:.3g})"
    return f"{value:.3g}"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as the lines of a Markdown table."""
    columns = columns_of(rows)
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(cell_text(row, column) for column in columns) + " |" for row in rows]


def page(results: Mapping[str, Any], grid: bytes) -> str:
    """HTML that needs nothing beside it."""
    rows = results["rows"]
    columns = columns_of(rows)
    head = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "\n".join(
        f'<tr class="{escape(str(row["sampler"]))}">'
        + "".join(f"<td>{_cell(row, column)}</td>" for column in columns)
        + "</tr>"
        for row in rows
    )
    models = list(dict.fromkeys(str(row["model"]) for row in rows if row["sampler"] == "lcm")) or ["the teacher"]
    title = escape(f"fewstep: {models[0]}" + (f" beside {', '.join(models[1:])}" if models[1:] else ""))
    meanings = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{escape(_MEANINGS[name])}</dd>"
        for name in (column.replace("_", " ") for column in columns) if name in _MEANINGS
    )  # fmt: skip
    record = {
        "evaluated": results.get("evaluated", {}), **results["protocol"], "painted_by": results.get("painted_by", {}),
    }  # fmt: skip
    protocol = "\n".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in _flat(record)
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{results["protocol"]["n"]} pictures a row, the same prompts and noise in each. Guidance is diffusers' guidance_scale.
In brackets: 95 % intervals; after ±: standard errors. {_caution(results)}</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
<h2>What the columns say</h2>
<dl>
{meanings}
</dl>
<h2>Pictures</h2>
<img alt="the same prompts and noise, a row a sampler" src="data:image/png;base64,{base64.b64encode(grid).decode()}">
<h2>Quality against steps and against time</h2>
{curves(rows)}
<h2>Protocol</h2>
<table class="protocol">
{protocol}
</table>
{_chosen(results.get("tuning", []))}
</body></html>
"""


def _cell(row: Mapping[str, Any], column: str) -> str:
    """With the interval, where there is one, in a line of its own."""
    value, found, interval = escape(cell_text(row, column)).partition(" (")
    return f"{value}<small>({interval}</small>" if found else value


def _caution(results: Mapping[str, Any]) -> str:
    n = results["protocol"]["n"]
    few = f"Of {n} pictures, Fréchet distances lean upwards; compare them with others of {n} alone."
    return few if n < TRUSTED else ""


def _chosen(tried: Sequence[Mapping[str, Any]]) -> str:
    """The rows by which guidance and spacing were chosen."""
    if not tried:
        return ""
    wanted = ("sampler", "steps", "spacing", "guidance_scale", "prompt_accuracy", "kd")
    columns = [name for name in wanted if any(row.get(name) is not None for row in tried)]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell_text(row, name))}</td>" for name in columns) + "</tr>" for row in tried
    )
    return (
        "<details><summary>How guidance and spacing were chosen: by pictures of other prompts</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></details>"
    )


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return pairs


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """SVG: a line a sampler, for every measure that the table has."""
    from matplotlib.figure import Figure  # seconds to import
    from matplotlib.ticker import NullLocator

    shown = [name for name in _CURVES if any(row.get(name) is not None for row in rows)]
    figure = Figure(figsize=(11, 3.4 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 2, squeeze=False)
    lines = {(row["model"], row["sampler"]): row for row in rows}
    for (across, down), ax in ((place, axes[place[1]][place[0]]) for place in _places(len(shown))):
        measure, x = shown[down], ("steps", "seconds_per_image")[across]
        for model, sampler in lines:
            points = [row for row in rows if (row["model"], row["sampler"]) == (model, sampler)]
            points = [row for row in points if row.get(measure) is not None]
            label = f"{NAMES[sampler]} ({model})" if sampler == "lcm" else NAMES[sampler]
            style = "*" if sampler == "teacher" else "o-"
            ax.plot([row[x] for row in points], [row[measure] for row in points], style, label=label)
        ax.set(xscale="log", xlabel=x.replace("_", " "), ylabel=_CURVES[measure])
        if measure == "fd":
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
        if x == "steps":
            ax.set_xticks(sorted({row["steps"] for row in rows}))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(alpha=0.3)
    axes[0][1].legend(fontsize=8)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _places(down: int) -> list[tuple[int, int]]:
    return [(across, i) for i in range(down) for across in (0, 1)]
