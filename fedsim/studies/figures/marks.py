"""What figures of a study share: axes of values, labels at the ends of lines, the arrow to the better corner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.results.formats import percent
from fedsim.studies.figures.style import INK, SOFT
from fedsim.studies.names import Measure, unit_of, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis as AxisOfPlot
    from matplotlib.figure import Figure

WIDE = 7.5
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


def is_wide(values: Sequence[float] | np.ndarray) -> bool:
    """Whether values are better shown on a logarithmic axis."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return len(known) > 1 and bool(known.min() > 0 and known.max() / known.min() >= WIDE)


def value_axis(axes: Axes, which: str, values: Sequence[float]) -> None:
    """An axis whose ticks are the values that were tried, logarithmic where they span much."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    axis: AxisOfPlot = getattr(axes, f"{which}axis")
    if is_wide(values):
        _logarithmic(axes, which, max(values) / min(values))
    if len(values) <= 9 and (is_wide(values) or _apart(values)):
        axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: value_text(float(value))))


def _apart(values: Sequence[float]) -> bool:
    """Whether ticks at these values leave room for their numbers on a linear axis."""
    ordered = np.sort(np.asarray(values, dtype=float))
    return len(ordered) < 2 or bool(np.diff(ordered).min() >= 0.07 * np.ptp(ordered))


def measure_axis(
    axes: Axes, which: str, measure: Measure, values: np.ndarray, ticks: Sequence[float] | None = None
) -> None:
    """An axis of a measure, with its unit; logarithmic where it spans much and is not a share. ticks: instead of its own."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    axis: AxisOfPlot = getattr(axes, f"{which}axis")
    divisor, unit = unit_of(measure, float(np.nanmax(values)))
    label = f"{measure.label} ({unit})" if unit else measure.label
    if not measure.is_share and is_wide(values):
        _logarithmic(axes, which, float(np.nanmax(values) / np.nanmin(values)))
        if not np.log10(divisor).is_integer() and ticks is None:  # round numbers of seconds are none of hours
            ticks = _unit_ticks(float(np.nanmin(values)), float(np.nanmax(values)), divisor)
    elif unit:
        low, high = float(np.nanmin(values)) / divisor, float(np.nanmax(values)) / divisor
        margin = 0.3 * (high - low)  # the axis may still grow a little
        places = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(max(low - margin, 0.0), high + margin)
        ticks = tuple(float(place) * divisor for place in places) if ticks is None else ticks
    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_label_text(label)
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(measure, value / divisor)))


def _unit_ticks(low: float, high: float, unit: float) -> tuple[float, ...]:
    """1, 2, 5, 10, ... of a unit around these values; of a wide range powers of ten alone."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low / unit)) - 1, np.ceil(np.log10(high / unit)) + 2)
    steps = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    return tuple(float(unit * power * step) for power in powers for step in steps)


def _tick(measure: Measure, value: float) -> str:
    if measure.is_share:
        return percent(round(value, 6)).replace(".0%", "%") if value < 1.0005 else ""
    return f"{float(f'{value:.3g}'):,g}"


def _logarithmic(axes: Axes, which: str, span: float) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    getattr(axes, f"set_{which}scale")("log")
    axis: AxisOfPlot = getattr(axes, f"{which}axis")
    narrow = axes.get_figure(root=True).get_figwidth() < 5  # type: ignore[union-attr]
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if span < (30 if narrow else 200) else (1.0,)))
    axis.set_minor_locator(NullLocator())


class EndLabel(NamedTuple):
    """Text beside the end of a line, at height y in data."""

    y: float
    text: str
    color: Any


def label_ends(figure: Figure, axes: Axes, labels: Sequence[EndLabel], title: str = "") -> None:
    """Names to the right of the axes, each as near to its line's end as the others let it, joined to it by a thin line."""
    labels = sorted((one for one in labels if np.isfinite(one.y)), key=lambda one: one.y)
    if not labels:
        return
    figure.draw_without_rendering()  # the layout gives the height that letters are measured against
    height = axes.get_window_extent().height / figure.dpi * 72
    size = _font(axes)
    to_axes = (axes.transData + axes.transAxes.inverted()).transform
    wanted = np.array([to_axes((axes.get_xlim()[1], one.y))[1] for one in labels])
    places = spread(np.clip(wanted, 0, 1), 1.25 * size / height)
    for one, at, place in zip(labels, wanted, places, strict=True):
        axes.annotate(
            one.text,
            xy=(1.0, float(np.clip(at, 0, 1))),
            xytext=(1.035, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            ha="left",
            color=one.color,
            fontsize=size,
            fontweight="bold",
            arrowprops={
                "arrowstyle": "-",
                "color": one.color,
                "lw": 0.7,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
    if title:
        above = max(places[-1] + 1.6 * size / height, 1.0)
        axes.text(1.035, above, title, transform=axes.transAxes, ha="left", va="bottom", color=SOFT, fontsize=size)


def spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Heights at least `gap` apart, as near to the ascending `wanted` (n,) as squares tell, within 0 to 1 where they fit.

    Least squares under an order is isotonic regression: neighbours that are too near share the mean of their wishes.
    """
    shifted = wanted - gap * np.arange(len(wanted))
    blocks: list[list[float]] = []  # mean, size
    for value in shifted:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, size = blocks.pop()
            last = blocks[-1]
            blocks[-1] = [(last[0] * last[1] + mean * size) / (last[1] + size), last[1] + size]
    placed = np.concatenate([np.full(int(size), mean) for mean, size in blocks]) + gap * np.arange(len(wanted))
    placed -= max(placed[-1] - 1.0, 0.0)
    return placed + max(-placed[0], 0.0) if placed[-1] - placed[0] <= 1.0 else placed


def _font(axes: Axes) -> float:
    return float(axes.yaxis.label.get_fontsize()) - 0.5


RESERVED = 0.19
"""Share of the height that is kept free for the arrow to the better corner."""


def reserve_corner(axes: Axes, higher_y: bool) -> None:
    """Lengthen the y axis on its better side, so that the arrow lies over nothing."""
    low, high = axes.transData.transform([(axes.get_xlim()[0], one) for one in axes.get_ylim()])[:, 1]
    more = (high - low) * RESERVED / (1 - RESERVED)
    ends = (low, high + more) if higher_y else (low - more, high)
    x = axes.transData.transform((axes.get_xlim()[0], axes.get_ylim()[0]))[0]
    axes.set_ylim(*axes.transData.inverted().transform([(x, one) for one in ends])[:, 1])


def better_corner(axes: Axes, higher_x: bool, higher_y: bool) -> None:
    """An arrow into the corner where both measures are best, which no point can reach."""
    x, y = (0.982 if higher_x else 0.018), (0.97 if higher_y else 0.03)
    dx, dy = (-0.075 if higher_x else 0.075), (-0.105 if higher_y else 0.105)
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 12}
    axes.annotate("", xy=(x, y), xytext=(x + dx, y + dy), xycoords="axes fraction", arrowprops=arrow)
    side = -0.012 if higher_x else 0.012
    place: dict[str, Any] = {
        "ha": "right" if higher_x else "left",
        "va": "center",
        "fontstyle": "italic",
        "fontsize": _font(axes),
    }
    axes.text(x + dx + side, y + dy * 0.92, "better", transform=axes.transAxes, color=INK, **place)


def error_bars(axes: Axes, x: Any, y: Any, low: Any, high: Any, color: Any, which: str = "y", **more: Any) -> None:
    """Intervals around points; none where a point has none."""
    x, y, low, high = (np.atleast_1d(np.asarray(one, dtype=float)) for one in (x, y, low, high))
    centre = y if which == "y" else x
    have = np.isfinite(low) & np.isfinite(high) & np.isfinite(x) & np.isfinite(y)
    if have.any():
        sizes = np.stack([centre - low, high - centre])[:, have]
        bars: dict[str, Any] = {f"{which}err": np.maximum(sizes, 0), "elinewidth": 1.0, "capsize": 2.2, "capthick": 1.0}
        axes.errorbar(x[have], y[have], fmt="none", ecolor=color, alpha=0.75, zorder=2, **bars, **more)
