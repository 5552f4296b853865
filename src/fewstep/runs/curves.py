"""Curves as SVG that follows the page's colours, light or dark, and can be read at 320 pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fewstep.runs.records import Points

WIDTH, HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 26
_MOST_POINTS = 400
_DECADES = 1.5
"""Above so many powers of ten between least and most, values are drawn over a logarithmic axis."""
DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Tell curves apart without colour too."""
COLOURS = 6


@dataclass(frozen=True)
class Curve:
    """Holds a line with its name; `points` are in the order of updates."""

    name: str
    points: Points


def draw_chart(title: str, curves: Sequence[Curve], *, end: float) -> str:
    """Draws curves over updates 0 to `end`, with their names below. A curve of one point is a dot."""
    curves = [curve for curve in curves if curve.points]
    values = [value for curve in curves for _, value in curve.points]
    axis = _Axis.over(values)
    across = (WIDTH - _LEFT - _RIGHT) / max(end, 1)
    parts = []
    for tick in axis.ticks():
        y = axis.place(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = _LEFT + part * (WIDTH - _LEFT - _RIGHT)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{_count(part * end)}</text>')
    for place, curve in enumerate(curves):
        look = f'class="c{place % COLOURS}" stroke-dasharray="{DASHES[place // COLOURS % len(DASHES)]}"'
        drawn = [(_LEFT + step * across, axis.place(value)) for step, value in thin_out(curve.points)]
        last = f"{curve.name}: {curve.points[-1][1]:.4g} after update {curve.points[-1][0]:g}"
        dots = drawn if len(drawn) <= 24 else drawn[-1:]
        parts.append(f"<g {look}><title>{escape(last)}</title>")
        parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)}"/>')
        parts += (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in dots)
        parts.append("</g>")
    said = "; ".join(f"{curve.name} {curve.points[-1][1]:.4g}" for curve in curves)
    legend = "".join(
        f'<li class="c{place % COLOURS}"><svg viewBox="0 0 24 8" aria-hidden="true"><line x1="0" x2="24" y1="4" y2="4" '
        f'stroke-dasharray="{DASHES[place // COLOURS % len(DASHES)]}"/></svg>{escape(curve.name)} '
        f"<b>{curve.points[-1][1]:.4g}</b></li>"
        for place, curve in enumerate(curves)
    )
    return (
        f"<figure><figcaption>{escape(title)}{' (logarithmic)' if axis.logarithmic else ''}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(said)}">'
        f"{''.join(parts)}</svg><ul>{legend}</ul></figure>"
    )


def thin_out(points: Points) -> Points:
    """Returns at most 400 points: the means of as many stretches, the last point as it is."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(len(points) / (_MOST_POINTS - 1))
    parts = [points[begin : begin + size] for begin in range(0, len(points), size)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return [*means, points[-1]]


@dataclass(frozen=True)
class _Axis:
    """Lays out the upright axis: what stands at its foot and its top."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def over(cls, values: Sequence[float]) -> _Axis:
        low, high = min(values), max(values)
        if low > 0 and math.log10(high / low) > _DECADES:
            return cls(math.floor(math.log10(low)), math.ceil(math.log10(high)), logarithmic=True)
        if low == high:
            room = abs(low) / 2 or 1.0
            return cls(low - room, high + room, logarithmic=False)
        room = (high - low) * 0.05
        return cls(0.0 if 0 <= low < (high - low) else low - room, high + room, logarithmic=False)

    def place(self, value: float) -> float:
        """Returns how far down the picture a value stands."""
        value = math.log10(value) if self.logarithmic else value
        return HEIGHT - _BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - _TOP - _BOTTOM)

    def ticks(self) -> list[float]:
        """Returns three to six values to name: powers of ten, or 1, 2 or 5 of one apart."""
        if self.logarithmic:
            apart = math.ceil((self.high - self.low) / 5)
            return [10.0**power for power in range(int(self.low), int(self.high) + 1, apart)]
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        apart = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / apart - 1e-9)
        return [round(each * apart, 12) + 0.0 for each in range(first, math.floor(self.high / apart + 1e-9) + 1)]


def _count(updates: float) -> str:
    return f"{updates / 1000:g}k" if updates >= 10_000 else f"{updates:g}"
