"""An evaluation on paper: results.json, table.md, grid.png, and one page with all of it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fewstep.evaluate.cell import TITLES, Cell
from fewstep.evaluate.columns import Column, order_by_direction
from fewstep.evaluate.metrics import list_columns
from fewstep.evaluate.protocol import RESULTS_FILE
from fewstep.evaluate.scoring import SECONDS, index_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from fewstep.files import write_whole

GRID_FILE = "grid.png"
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
        "report.html": make_page(results, picture.getvalue()).encode(),
        RESULTS_FILE: json.dumps(results, indent=2).encode() + b"\n",
    }
    for name, content in files.items():
        with write_whole(out / name) as draft:
            draft.write_bytes(content)


def list_columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names every column that some row has, in order; the ends of intervals stand with their values."""
    found = dict.fromkeys(name for row in rows for name in row)
    return [name for name in found if not name.endswith(("_low", "_high", "_error"))]


def write_cell(row: Mapping[str, Any], column: str) -> str:
    """Writes the value, with its 95 % interval or standard error where it has one."""
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
    """Writes the rows, whatever their columns, as the lines of a Markdown table."""
    columns = list_columns_of(rows)
    lines = ["| " + " | ".join(column.replace("_", " ") for column in columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(write_cell(row, column) for column in columns) + " |" for row in rows]


def make_page(results: Mapping[str, Any], grid: bytes) -> str:
    """Makes a page of HTML that needs nothing beside it; `grid` is a PNG."""
    rows = results["rows"]
    models = list(dict.fromkeys(str(row["model"]) for row in rows if row["sampler"] == "lcm")) or ["the teacher"]
    title = escape(f"fewstep: {models[0]}" + (f" beside {', '.join(models[1:])}" if models[1:] else ""))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{_STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{results["protocol"]["n"]} pictures a row, the same prompts and noise in each. Guidance is diffusers' guidance_scale.
In brackets: 95 % intervals; after ±: standard errors. {_warn_of_bias(results)}</p>
<div class="wide">{_tabulate(rows)}</div>
<h2>What the columns say</h2>
<dl>
{_explain(list_columns_of(rows))}
</dl>
<h2>Pictures</h2>
<img alt="the same prompts and noise, a row a sampler" src="data:image/png;base64,{base64.b64encode(grid).decode()}">
<h2>Quality against steps and against time</h2>
{draw_curves(rows)}
<h2>Protocol</h2>
{_tabulate_protocol(results)}
{_tabulate_choices(results.get("tuning", []))}
</body></html>
"""


def _tabulate(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the rows, each of its sampler's class."""
    columns = list_columns_of(rows)
    head = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    body = "\n".join(
        f'<tr class="{escape(str(row["sampler"]))}">'
        + "".join(f"<td>{_break_before_interval(row, column)}</td>" for column in columns)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _break_before_interval(row: Mapping[str, Any], column: str) -> str:
    """Writes a value, and its interval, where there is one, in a line of its own."""
    value, found, interval = escape(write_cell(row, column)).partition(" (")
    return f"{value}<small>({interval}</small>" if found else value


def _explain(names: Sequence[str]) -> str:
    """Writes the meanings of these columns."""
    columns = [column for name in names if (column := index_columns().get(name)) and column.meaning]
    return "\n".join(f"<dt>{escape(column.label)}</dt><dd>{escape(column.meaning)}</dd>" for column in columns)


def _warn_of_bias(results: Mapping[str, Any]) -> str:
    n = results["protocol"]["n"]
    biased = [index_columns()[name] for name in list_columns_of(results["rows"]) if name in index_columns()]
    return " ".join(
        f"Of {n} pictures, {column.plural} lean upwards; compare them with others of {n} alone."
        for column in biased if n < column.biased_below
    )  # fmt: skip


def _tabulate_protocol(results: Mapping[str, Any]) -> str:
    record = {
        "evaluated": results.get("evaluated", {}), **results["protocol"], "painted_by": results.get("painted_by", {}),
    }  # fmt: skip
    lines = "\n".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in _flatten(record)
    )
    return f'<table class="protocol">\n{lines}\n</table>'


def _tabulate_choices(tried: Sequence[Mapping[str, Any]]) -> str:
    """Writes the rows by which guidance and spacing were chosen."""
    if not tried:
        return ""
    wanted = [field.name for field in fields(Cell)] + [column.name for column in list_columns() if column.chooses]
    columns = [name for name in wanted if any(row.get(name) is not None for row in tried)]
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td>{escape(write_cell(row, name))}</td>" for name in columns) + "</tr>" for row in tried
    )
    return (
        "<details><summary>How guidance and spacing were chosen: by pictures of other prompts</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></details>"
    )


def _flatten(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return pairs


def draw_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draws, as SVG, a line for every sampler: a row of axes for each column that has curves, over steps and time."""
    from matplotlib.figure import Figure  # seconds to import

    drawn_columns = [
        column for column in order_by_direction(list_columns())
        if column.curve_label and any(row.get(column.name) is not None for row in rows)
    ]  # fmt: skip
    figure = Figure(figsize=(11, 3.4 * len(drawn_columns)), layout="constrained")
    axes = figure.subplots(len(drawn_columns), 2, squeeze=False)
    for column, pair in zip(drawn_columns, axes, strict=True):
        for x, ax in zip(("steps", SECONDS.name), pair, strict=True):
            _draw(ax, rows, x, column)
    axes[0][1].legend(fontsize=8)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _draw(ax: Axes, rows: Sequence[Mapping[str, Any]], x: str, column: Column) -> None:
    """Draws a line for every model's sampler, whose rows may have no value in this column."""
    from matplotlib.ticker import NullLocator

    for model, sampler in dict.fromkeys((row["model"], row["sampler"]) for row in rows):
        points = [row for row in rows if (row["model"], row["sampler"]) == (model, sampler)]
        points = [row for row in points if row.get(column.name) is not None]
        label = f"{TITLES[sampler]} ({model})" if sampler == "lcm" else TITLES[sampler]
        style = "*" if sampler == "teacher" else "o-"
        ax.plot([row[x] for row in points], [row[column.name] for row in points], style, label=label)
    ax.set(xscale="log", xlabel=x.replace("_", " "), ylabel=column.curve_label)
    if column.log_scale:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
    if x == "steps":
        ax.set_xticks(sorted({row["steps"] for row in rows}))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(alpha=0.3)
