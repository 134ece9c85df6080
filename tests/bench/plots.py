"""Line plots as SVG: logarithmic axes, a name at the end of each line, bars from the least to the greatest round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 54, 56
LABEL_PX = 16
OURS = "#0b6e4f"
LIMIT = "#8a8f98"
COLOURS = ("#c1553b", "#3d6fb4", "#8e5aa8", "#b8860b", "#2a9d9d", "#a23b72", "#5c6b2f")
INK, FAINT, PAPER = "#24292f", "#e3e6ea", "#ffffff"


class Point(NamedTuple):
    """A median, and the range of its rounds."""

    x: float
    y: float
    low: float
    high: float


@dataclass
class Line:
    """One contestant."""

    name: str
    points: list[Point] = field(default_factory=list)
    #: Drawn dashed and grey: no peer, but what the machine can do.
    is_limit: bool = False
    is_ours: bool = False
    #: Which of the colours; the same contestant has the same in all plots.
    colour: int = 0


class _Axis:
    """A logarithmic axis from value to pixel."""

    def __init__(self, values: Sequence[float], start_px: float, end_px: float, *, room: float) -> None:
        low, high = min(values), max(values)
        self.low, self.high = low / room, high * room
        self._start, self._scale = start_px, (end_px - start_px) / math.log(self.high / self.low)

    def px(self, value: float) -> float:
        return self._start + self._scale * math.log(max(value, self.low) / self.low)

    def ticks(self) -> list[float]:
        """1, 2, 5, 10 ... within the axis; only powers of ten when these are many."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps: tuple[float, ...] = (1, 2, 5) if last - first <= 4 else (1,)
        found = (step * 10.0**power for power in range(first, last + 1) for step in steps)
        return [value for value in found if self.low <= value <= self.high]


def plot(title: str, x_title: str, y_title: str, lines: Sequence[Line], x_ticks: Sequence[float] = ()) -> str:
    """The text of an SVG file."""
    lines = [line for line in lines if line.points]
    points = [point for line in lines for point in line.points]
    x = _Axis([point.x for point in points], LEFT + 12, WIDTH - RIGHT - 12, room=1.0001)
    spread = [value for point in points for value in (point.low, point.high)]
    y = _Axis(spread, HEIGHT - BOTTOM, TOP, room=1.25)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{PAPER}"/>',
        f'<text x="{LEFT}" y="26" font-size="16" font-weight="bold">{escape(title)}</text>',
        f'<text x="{LEFT}" y="{TOP - 10}" fill="{LIMIT}">{escape(y_title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_title)}</text>',
    ]
    parts += _grid(x, y, x_ticks)
    drawn = [(line, LIMIT if line.is_limit else OURS if line.is_ours else _colour(line)) for line in lines]
    # Ours last, so that it lies on top.
    for line, colour in sorted(drawn, key=lambda pair: pair[0].is_ours):
        parts += _line(line, colour, x, y)
    parts += _labels(drawn, x, y)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _colour(line: Line) -> str:
    return COLOURS[line.colour % len(COLOURS)]


def _grid(x: _Axis, y: _Axis, x_ticks: Sequence[float]) -> list[str]:
    parts = []
    for value in y.ticks():
        at = y.px(value)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{FAINT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in x_ticks or x.ticks():
        at = x.px(value)
        parts.append(f'<path d="M{at:.1f} {HEIGHT - BOTTOM}v5" stroke="{INK}"/>')
        label = _number(value)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{label}</text>')
    parts.append(f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="{INK}"/>')
    return parts


def _number(value: float) -> str:
    if value >= 10_000 and math.log10(value).is_integer():
        return f'10<tspan dy="-5" font-size="10">{round(math.log10(value))}</tspan>'
    return f"{value:,g}"


def _line(line: Line, colour: str, x: _Axis, y: _Axis) -> list[str]:
    width = 3 if line.is_ours else 1.8
    dashes = ' stroke-dasharray="6 4"' if line.is_limit else ""
    path = "L".join(f"{x.px(point.x):.1f} {y.px(point.y):.1f}" for point in line.points)
    parts = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>']
    for point in line.points:
        at = x.px(point.x)
        if point.high > point.low:
            bar = f"M{at:.1f} {y.px(point.low):.1f}V{y.px(point.high):.1f}"
            parts.append(f'<path d="{bar}" stroke="{colour}" stroke-opacity="0.5" stroke-width="1.5"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{y.px(point.y):.1f}" r="{width + 1}" fill="{colour}"/>')
    return parts


def _labels(drawn: Sequence[tuple[Line, str]], x: _Axis, y: _Axis) -> list[str]:
    """A name beside the last point of each line; names that would overlap are moved apart, as little as they must."""
    placed = [(y.px(line.points[-1].y), line, colour) for line, colour in drawn]
    wanted = sorted(placed, key=lambda one: one[0])
    places = [at for at, _, _ in wanted]
    for _ in range(50):
        for i in range(1, len(places)):
            lack = LABEL_PX - (places[i] - places[i - 1])
            if lack > 0:
                places[i - 1] -= lack / 2
                places[i] += lack / 2
    parts = []
    left = WIDTH - RIGHT + 10
    for place, (at, line, colour) in zip(places, wanted, strict=True):
        end = x.px(line.points[-1].x) + 6
        parts.append(f'<path d="M{end:.1f} {at:.1f}L{left - 3} {place:.1f}" stroke="{colour}" stroke-width="0.8"/>')
        weight = ' font-weight="bold"' if line.is_ours else ""
        text = f'<text x="{left}" y="{place + 4:.1f}" fill="{colour}"{weight}>{escape(line.name)}</text>'
        parts.append(text)
    return parts
