"""Curves as SVG: drawn here, so that they are seen where no script runs; `page.js` shows the values pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["Chart", "Line", "draw_chart", "short_number"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 30
# Values that span more than this are drawn on a logarithmic scale.
_WIDE_RANGE = 30.0
NUM_COLOURS = 8


@dataclass(frozen=True)
class Line:
    """One curve: its name, and its points with ascending steps."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes.

    Args:
        title: what is drawn.
        lines: the curves; those without points are left out.
        level: a value that is marked by a broken line across, with its name; None for none.
        is_linear: however far the values span; else many powers of ten are drawn on a logarithmic scale.
    """

    title: str
    lines: Sequence[Line]
    level: tuple[str, float] | None = None
    is_linear: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(line.points for line in self.lines)


@dataclass(frozen=True)
class _Axis:
    """Where values of an axis lie on the screen."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def place(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.is_log else (self.low, self.high)
        at = math.log10(max(value, self.low)) if self.is_log else value
        share = min(max((at - low) / (high - low), 0.0), 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.is_log else _even_ticks(self.low, self.high)


def draw_chart(chart: Chart, number: int, width: int, height: int) -> tuple[str, dict[str, Any]]:
    """Return a chart as SVG, and what the script needs to know of it.

    Args:
        chart: has something to draw.
        number: of the chart on its page.
        width, height: in the SVG's own units: pixels, unless the page makes it larger.
    """
    lines = [line for line in chart.lines if line.points]
    across, up = _axes(chart, lines, width, height)
    title = escape(chart.title)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" data-chart="{number}" role="img" tabindex="0" '
        f'aria-label="{title}">'
    ]
    for tick in up.ticks():
        y = up.place(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{short_number(tick)}</text>'
        )
    for tick in across.ticks():
        x = across.place(tick)
        parts.append(
            f'<text class="tick" x="{x}" y="{height - _BOTTOM + 18}" text-anchor="middle">{short_number(tick)}</text>'
        )
    if chart.level is not None:
        y = up.place(chart.level[1])
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y}" y2="{y}"/>')
        name = escape(chart.level[0])
        parts.append(f'<text class="tick" x="{width - _RIGHT}" y="{y - 4}" text-anchor="end">{name}</text>')
    for colour, line in enumerate(chart.lines):
        if not line.points:
            continue  # the others keep their colours, the same in each chart of a page
        shade = f"c{colour % NUM_COLOURS}" + (" dashed" if colour >= NUM_COLOURS else "")
        places = [(across.place(step), up.place(value)) for step, value in line.points]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
        parts.append(f'<path class="curve {shade}" d="{path}"/>')
        if len(places) <= 12:
            parts += [f'<circle class="dot {shade}" cx="{x:g}" cy="{y:g}" r="3"/>' for x, y in places]
    parts.append(f'<g class="pointer"><line y1="{_TOP}" y2="{height - _BOTTOM}"/></g></svg>')
    about = {
        "x": [across.low, across.high, across.start, across.end],
        "y": [up.low, up.high, up.start, up.end],
        "log": up.is_log,
        "width": width,
        "lines": [
            {
                "name": line.name,
                "colour": colour % NUM_COLOURS,
                "points": [[_round(x), _round(y)] for x, y in line.points],
            }
            for colour, line in enumerate(chart.lines)
            if line.points
        ],
    }
    return "".join(parts), about


def legend(chart: Chart) -> str:
    """Return the names of a chart's curves, each with its colour, as HTML."""
    return "".join(
        f'<span class="key"><i class="c{colour % NUM_COLOURS}"></i>{escape(line.name)}</span>'
        for colour, line in enumerate(chart.lines)
        if line.points
    )


def _axes(chart: Chart, lines: Sequence[Line], width: int, height: int) -> tuple[_Axis, _Axis]:
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    if chart.level is not None:
        values.append(chart.level[1])
    across = _Axis(*_spread(min(steps), max(steps), 0.5), _LEFT, width - _RIGHT)
    low, high = min(values), max(values)
    if not chart.is_linear and low > 0 and high / low > _WIDE_RANGE:
        return across, _Axis(low / 1.15, high * 1.15, height - _BOTTOM, _TOP, is_log=True)
    room = 0.06 * (high - low)
    low, high = _spread(low - room if low < 0 or low > room else 0.0, high + room, abs(high) * 0.1 or 1.0)
    return across, _Axis(low, high, height - _BOTTOM, _TOP)


def _spread(low: float, high: float, room: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - room, high + room)


def _even_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers between two, a step of 1, 2 or 5 times a power of ten apart."""
    size = (high - low) / most
    power = 10.0 ** math.floor(math.log10(size))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= size * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, min(last, first + 20) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil((last - first) / 6)
    powers = [10.0**power for power in range(first, last + 1, every)]
    if last - first <= 2:
        powers = [factor * power for power in powers for factor in (1, 2, 5)]
    return [tick for tick in powers if low <= tick <= high]


def short_number(value: float) -> str:
    """Return a number as it stands on an axis: 1.5k, 0.02, 2e-05."""
    size = abs(value)
    if size >= 1e15 or (0 < size < 1e-3):
        return f"{value:.2g}"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


def _round(value: float) -> float | int:
    return int(value) if value == int(value) and abs(value) < 2**53 else float(f"{value:.6g}")
