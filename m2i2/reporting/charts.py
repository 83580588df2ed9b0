"""Line charts as SVG inside the page; colours come from the page's style, so that they follow light and dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 26
_POINTS = 300
"""Points that a line shows; of more, neighbours are averaged."""


@dataclass(frozen=True)
class Line:
    """Values over optimizer steps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    marked: bool = False
    """Draw a dot at every point: for lines of a few points."""


@dataclass(frozen=True)
class Chance:
    """What guessing gives: a dashed line across a chart."""

    name: str
    value: float


def line_of(rows: Sequence[dict], key: str, name: str, scale: float = 1.0, marked: bool = False) -> Line | None:
    """The finite values of ``key`` over ``step``; None where there are none."""
    pairs = [
        (float(row["step"]), scale * float(row[key]))
        for row in rows
        if isinstance(row.get(key), int | float) and isinstance(row.get("step"), int | float) and math.isfinite(row[key])
    ]
    return Line(name, [x for x, _ in pairs], [y for _, y in pairs], marked) if pairs else None


def chart(title: str, lines: Sequence[Line | None], about: str = "", chance: Chance | None = None) -> Markup:
    """One chart of all lines that there are, under a sentence ``about`` it; nothing where there is none."""
    drawn = [line for line in lines if line is not None]
    if not drawn:
        return Markup("")
    left, right = min(min(line.steps) for line in drawn), max(max(line.steps) for line in drawn)
    values = [value for line in drawn for value in line.values] + ([chance.value] if chance else [])
    ticks = _ticks(min(values), max(values))
    low, high = min(*values, ticks[0]), max(*values, ticks[-1])

    def x(step: float) -> float:
        return _LEFT + (step - left) / max(right - left, 1e-9) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / max(high - low, 1e-12) * (_HEIGHT - _TOP - _BOTTOM)

    ends = ", ".join(f"{line.name} {_short(line.values[0])} to {_short(line.values[-1])}" for line in drawn)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}: {escape(ends)}">']
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>')
    for step, anchor in ((left, "start"), (right, "end")) if right > left else ((left, "start"),):
        parts.append(f'<text x="{x(step):.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{_count(step)}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">step</text>')
    if chance:
        across = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(chance.value):.1f}" y2="{y(chance.value):.1f}"'
        parts.append(f'<line class="chance" {across}/>')
    for number, line in enumerate(drawn):
        points = _thinned(line)
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        if len(points) > 1:
            parts.append(f'<polyline class="c{number % 4}" points="{path}"/>')
        if line.marked or len(points) == 1:
            parts += [f'<circle class="c{number % 4}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="3"/>' for s, v in points]
    keys = [(f"c{i % 4}", line.name, line.values[-1]) for i, line in enumerate(drawn)]
    keys += [("chance", chance.name, chance.value)] if chance else []
    legend = "".join(f'<span class="key {kind}">{escape(name)} <b>{_short(value)}</b></span>' for kind, name, value in keys)
    said = f"<p>{escape(about)}</p>" if about else ""
    return Markup(f"<figure><figcaption>{escape(title)}</figcaption>{said}{''.join(parts)}</svg><div>{legend}</div></figure>")


def reliability(title: str, bins: Sequence[Mapping[str, Any]]) -> Markup:
    """A reliability diagram: accuracy (0 to 1, with its interval) over the probability given; a dot a bin, larger for more.

    ``bins``: ``confidence``, ``accuracy``, ``interval`` and ``questions`` of each. Below the diagonal: surer than right.
    """
    side, left, top, bottom = 190, _LEFT, _TOP, 30
    total = sum(one["questions"] for one in bins)

    def x(value: float) -> float:
        return left + value * side

    def y(value: float) -> float:
        return top + (1 - value) * side

    height = top + side + bottom
    points = ", ".join(f"{one['confidence']:.2f}: {one['accuracy']:.2f}" for one in bins)
    said = f"{escape(title)}, share of right answers by probability: {points}"
    parts = [f'<svg class="square" viewBox="0 0 {left + side + _RIGHT} {height}" role="img" aria-label="{said}">']
    for tick in (0, 0.5, 1):
        parts.append(f'<line class="grid" x1="{x(0)}" x2="{x(1)}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 3.5}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{x(tick)}" y="{height - 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="chance" x1="{x(0)}" x2="{x(1)}" y1="{y(0)}" y2="{y(1)}"/>')
    parts.append(f'<text x="{x(0.5)}" y="{height - 3}" text-anchor="middle">probability of the answer</text>')
    for one in bins:
        low, high = one["interval"]
        across, radius = x(one["confidence"]), 2 + 6 * math.sqrt(one["questions"] / total)
        parts.append(f'<polyline class="c0" points="{across:.1f},{y(low):.1f} {across:.1f},{y(high):.1f}"/>')
        parts.append(f'<circle class="c0" cx="{across:.1f}" cy="{y(one["accuracy"]):.1f}" r="{radius:.1f}"/>')
    return Markup(f"<figure><figcaption>{escape(title)}: share of right answers</figcaption>{''.join(parts)}</svg></figure>")


def _thinned(line: Line) -> list[tuple[float, float]]:
    """Points of a line, neighbours averaged where there are too many."""
    size = math.ceil(len(line.steps) / _POINTS)
    groups = [(line.steps[i : i + size], line.values[i : i + size]) for i in range(0, len(line.steps), size)]
    return [(sum(steps) / len(steps), sum(values) / len(values)) for steps, values in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values that reach from at or below ``low`` to at or above ``high``."""
    span = max(high - low, 0.01 * abs(high)) or 1.0
    step = 10 ** math.floor(math.log10(span / 3))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 4)
    first = math.floor(low / step)
    return [i * step for i in range(first, math.ceil(high / step - 1e-9) + 1)]


def _count(step: float) -> str:
    """A number of steps."""
    return f"{step:,.0f}" if step == int(step) else _short(step)


def _short(value: float) -> str:
    """A number in a few characters."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        mantissa, exponent = f"{value:.2g}".split("e") if "e" in f"{value:.2g}" else (f"{value:.1e}".split("e"))
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.4g}"
