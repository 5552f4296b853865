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

GRID_FILE = "grid.png"
NAMES = {
    "teacher": "teacher", "ddim": "DDIM", "dpm-solver-2": "DPM-Solver-2", "dpm++": "DPM-Solver++ (2M)",
    "euler": "Euler", "unipc": "UniPC", "lcm": "LCM",
}  # fmt: skip
_CURVES = {
    "prompt_accuracy": "prompt accuracy", "share_in_style": "share in style", "clip_score": "CLIP score",
    "fd": "Fréchet distance", "to_teacher": "distance to the teacher's pictures",
    "diversity": "diversity within a prompt",
}  # fmt: skip
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #222; }
h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { background: #f4f4f4; } th:first-child, td:first-child, .protocol td { text-align: left; }
.protocol td { white-space: normal; overflow-wrap: anywhere; }
tr.lcm td { background: #eef6ee; }
img, svg { max-width: 100%; height: auto; }
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
        draft = out / f"{name}.tmp"
        draft.write_bytes(content)
        draft.rename(out / name)


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
        + "".join(f"<td>{escape(cell_text(row, column))}</td>" for column in columns)
        + "</tr>"
        for row in rows
    )
    title = f"fewstep: {escape(str(rows[-1]['model']))}"
    protocol = "\n".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
        for name, value in _flat({**results["protocol"], "painted_by": results.get("painted_by", {})})
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{results["protocol"]["n"]} pictures a row, the same prompts and noise in each. Guidance is diffusers' guidance_scale.
In brackets: 95 % intervals; after ±: standard errors.</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
<h2>Pictures</h2>
<img alt="the same prompts and noise, a row a sampler" src="data:image/png;base64,{base64.b64encode(grid).decode()}">
<h2>Quality against steps and against time</h2>
{curves(rows)}
<h2>Protocol</h2>
<table class="protocol">
{protocol}
</table>
</body></html>
"""


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return pairs


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """SVG: a line a sampler, for every measure that the table has."""
    from matplotlib.figure import Figure  # seconds to import

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
        ax.grid(alpha=0.3)
    axes[0][1].legend(fontsize=8)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _places(down: int) -> list[tuple[int, int]]:
    return [(across, i) for i in range(down) for across in (0, 1)]
