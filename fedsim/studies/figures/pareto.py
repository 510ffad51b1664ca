"""Pareto fronts: what each gain costs, for every two measures that are weighed against each other."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.studies.figures.front_names import common_axes, name_front
from fedsim.studies.figures.marks import EndLabel, better_corner, error_bars, label_ends, measure_axis, reserve_corner
from fedsim.studies.figures.style import FAINT, INK, MOST_SERIES, SOFT, Look, Series, series_of
from fedsim.studies.names import Measure, sentence_case
from fedsim.studies.statistics import pareto_front
from fedsim.studies.study import Study
from fedsim.studies.varied import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_INTERVALS = 60
GROUND = "#FFE08A"
"""Of the front of all cells, below those of one population each."""


def pairs(study: Study) -> list[tuple[Measure, Measure]]:
    """(across, up) of every two measures that exist and vary; accuracy goes up, costs across."""
    return [(second, first) for first, second in combinations(study.varying(), 2)]


def pareto(study: Study, across: Measure, up: Measure, look: Look) -> Figure | None:
    """All cells, those that no other beats joined by a step line; one line a population where ε and clients both vary."""
    points = np.stack([study.statistic(one, "mean") for one in (across, up)], 1)  # (cells, 2)
    have = np.isfinite(points).all(1)
    if have.sum() < 2:
        return None
    higher = (bool(across.higher), bool(up.higher))
    front = pareto_front(points, higher)
    if _distinct(points[front]) < 2:
        return None  # see `no_trade`
    lines = _line_axis(study, points, across)
    figure, (axes,) = look.figure(_title(study, across, up, front, have), height=None)
    if lines is not None:
        ends = _by_line(axes, study, points, lines, higher, look)
        ends += _ceiling(axes, study, across, up)
        _intervals(axes, study, across, up, points, _colors(study, lines, look))
    else:
        group = _color_axis(study)
        colors = _colors(study, group, look)
        _steps(axes, points[front], higher[1], INK, 1.4)
        _scatter(axes, points, front, colors, look.dot)
        _intervals(axes, study, across, up, points, [c if f else FAINT for c, f in zip(colors, front, strict=True)])
        ends = []
    for which, one, column in (("x", across, 0), ("y", up, 1)):
        measure_axis(axes, which, one, points[have][:, column], _ticks(study, one))
    axes.margins(x=0.07, y=0.08)
    reserve_corner(axes, higher[1])
    if ends:
        label_ends(figure, axes, ends)
        axes.legend(loc="upper right" if higher[1] else "lower right")  # where the arrow has its room
    else:
        name_front(figure, axes, study, points, front, higher)
    better_corner(axes, *higher)
    return figure


def no_trade(study: Study) -> list[str]:
    """Pairs of measures that one cell is best in, which are not drawn: a sentence each."""
    words = []
    for across, up in pairs(study):
        points = np.stack([study.statistic(one, "mean") for one in (across, up)], 1)
        front = pareto_front(points, (bool(across.higher), bool(up.higher)))
        if front.any() and _distinct(points[front]) < 2:
            common = common_axes(study, np.flatnonzero(front))
            best = ", ".join(axis.phrase(study.value(int(front.argmax()), axis)) for axis in common)
            words.append(f"{sentence_case(best or 'every cell')} is best in {up.label} and in {across.label} at once.")
    return words


def _distinct(points: np.ndarray) -> int:
    """How many of these points are different from each other, by more than rounding."""
    scale = np.abs(points).max(0, keepdims=True)
    return len(np.unique(np.round(points / np.where(scale > 0, scale, 1), 9), axis=0))


def _ticks(study: Study, measure: Measure) -> tuple[float, ...] | None:
    """Of ε, the values that were asked for, where they are not too many."""
    axis = study.axis("privacy.epsilon") if measure.name == "epsilon" else None
    return axis.known if axis is not None and axis.numeric and len(axis.known) <= MOST_SERIES else None


def _title(study: Study, across: Measure, up: Measure, front: np.ndarray, have: np.ndarray) -> str:
    head = f"{sentence_case(up.label)} against {across.label}"
    cells = np.flatnonzero(front)
    if common := common_axes(study, cells):
        words = ", ".join(axis.phrase(study.value(int(cells[0]), axis)) for axis in common)
        return f"{head}: the whole front is {words}"
    return f"{head}: {len(cells)} of {int(have.sum())} cells are on the front"


def _line_axis(study: Study, points: np.ndarray, across: Measure) -> Axis | None:
    """The axis whose values get a front each: the population where ε varies too, and in it both measures move."""
    axis = study.axis("population.num_clients")
    if axis is None or across.name != "epsilon" or not 2 <= len(axis.values) <= MOST_SERIES:
        return None
    of = [study.value(cell, axis) for cell in study.cells.index]
    own = [points[[one == value for one in of]] for value in axis.values]
    spans = [np.ptp(mine[np.isfinite(mine).all(1)], axis=0) for mine in own if np.isfinite(mine).all(1).sum() > 1]
    return axis if spans and all((span > 0).all() for span in spans) else None


def _color_axis(study: Study) -> Axis | None:
    return next((axis for axis in study.axes if 1 < len(axis.values) <= MOST_SERIES), None)


def _series(axis: Axis, look: Look) -> dict[Any, Series]:
    return dict(zip(axis.values, series_of(len(axis.values), axis.numeric, look), strict=True))


def _colors(study: Study, axis: Axis | None, look: Look) -> list[Any]:
    """(cells,) the colour of each."""
    if axis is None:
        return [series_of(1, True, look)[0].color] * len(study.cells)
    series = _series(axis, look)
    return [series[study.value(cell, axis)].color for cell in study.cells.index]


def _by_line(
    axes: Axes, study: Study, points: np.ndarray, axis: Axis, higher: tuple[bool, bool], look: Look
) -> list[EndLabel]:
    """A front for each value of the axis, the best of all on a pale ground; gives what to write at the ends."""
    _steps(axes, points[pareto_front(points, higher)], higher[1], GROUND, 7.0, zorder=0, label="front of all cells")
    of = [study.value(cell, axis) for cell in study.cells.index]
    ends = []
    for value, series in _series(axis, look).items():
        mine = points[[one == value for one in of]]
        mine = mine[np.isfinite(mine).all(1)]
        if not len(mine):
            continue
        front = pareto_front(mine, higher)
        _steps(axes, mine[front], higher[1], series.color, None, dash=series.dash)
        axes.scatter(mine[front, 0], mine[front, 1], s=look.dot, color=series.color, marker=series.marker, zorder=4)
        axes.scatter(
            mine[~front, 0],
            mine[~front, 1],
            s=0.8 * look.dot,
            facecolors="white",
            edgecolors=[series.color],
            marker=series.marker,
            zorder=4,
        )
        last = mine[front][np.argmax(mine[front][:, 0])]
        ends.append(EndLabel(float(last[1]), axis.phrase(value), series.color))
    return ends


def _ceiling(axes: Axes, study: Study, across: Measure, up: Measure) -> list[EndLabel]:
    """The best of the cells that have no value across, as those without privacy have no ε: a dashed line."""
    free = ~np.isfinite(study.statistic(across, "mean"))
    reached = study.statistic(up, "mean")[free]
    axis = study.axis("privacy.epsilon")
    if axis is None or not np.isfinite(reached).any():
        return []
    best = float(np.nanmax(reached) if up.higher else np.nanmin(reached))
    axes.axhline(best, color=SOFT, lw=1.2, ls=(0, (3, 2)), zorder=1)
    return [EndLabel(best, axis.phrase(None), SOFT)]


def _steps(
    axes: Axes,
    points: np.ndarray,
    higher_y: bool,
    color: Any,
    width: float | None,
    dash: Any = "-",
    zorder: float = 2.5,
    label: str = "",
) -> None:
    """The border of what can be had: from each point of the front along to the next one's cost, and there to its gain."""
    ordered = points[np.argsort(points[:, 0], kind="stable")]
    if len(ordered) > 1:
        thick: dict[str, Any] = {} if width is None else {"lw": width}
        axes.step(
            ordered[:, 0],
            ordered[:, 1],
            where="post",
            color=color,
            ls=dash,
            zorder=zorder,
            label=label or None,
            **thick,
        )


def _scatter(axes: Axes, points: np.ndarray, front: np.ndarray, colors: list[Any], dot: float) -> None:
    """Full points on the front, smaller hollow ones behind it."""
    known = np.isfinite(points).all(1)
    for chosen, size, layer in ((known & ~front, 0.6 * dot, 3), (known & front, 1.15 * dot, 4)):
        edges = [color for color, one in zip(colors, chosen, strict=True) if one]
        faces: Any = edges if layer == 4 else "white"
        axes.scatter(
            points[chosen, 0], points[chosen, 1], s=size, facecolors=faces, edgecolors=edges, lw=1.1, zorder=layer
        )


def _intervals(axes: Axes, study: Study, across: Measure, up: Measure, points: np.ndarray, colors: list[Any]) -> None:
    """Around every cell; of very many around those of the front alone, which the others would hide."""
    x, y = points.T
    front = pareto_front(points, (bool(across.higher), bool(up.higher)))
    shown = front if len(points) > MOST_INTERVALS else np.ones(len(points), dtype=bool)
    for one, which in ((across, "x"), (up, "y")):
        low, high = (study.statistic(one, name) for name in ("low", "high"))
        wide = high - low > 1e-6 * np.abs(x if which == "x" else y)  # an exact cost needs no bar
        for cell in np.flatnonzero(wide & shown):
            error_bars(axes, x[cell], y[cell], low[cell], high[cell], colors[cell], which)
