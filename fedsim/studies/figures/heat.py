"""Two numbers varied: the measure as a map, a map for each name where a third axis has a few."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.results.formats import DASH, known
from fedsim.studies.figures.marks import value_axis
from fedsim.studies.figures.style import INK, Look
from fedsim.studies.names import missing, sentence_case, value_text
from fedsim.studies.study import Study
from fedsim.studies.varied import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_MAPS = 4
MOST_VALUES = 30
LEAST_FILLED = 0.5
"""Of a grid; below it the cells were drawn by chance, and are points rather than a map."""
MOST_WRITTEN = 10
"""Values of an axis up to which the numbers stand in the map."""


def heat_map(study: Study, look: Look) -> Figure | None:
    """Rows: the first numeric axis; columns: the second; a cell that was not run is hatched, never coloured."""
    others = [axis for axis in study.axes if axis not in study.numeric]
    if len(study.numeric) != 2 or len(others) > 1 or (others and len(others[0].values) > MOST_MAPS):
        return None
    rows, columns = study.numeric
    names: list[Any] = list(others[0].values) if others else [None]
    grids = [_grid(study, rows, columns, others, name) for name in names]
    values = np.concatenate([grid[..., 0].ravel() for grid in grids])
    if np.isfinite(values).sum() < 4:
        return None
    if np.isfinite(values).mean() < LEAST_FILLED or max(len(rows.known), len(columns.known)) > MOST_VALUES:
        return _scattered(study, rows, columns, look) if not others else None
    figure, axes = look.figure(_title(study, rows, columns), len(names), height=_height(rows, look, len(names)))
    limits = (float(np.nanmin(values)), float(np.nanmax(values)))
    for name, grid, one in zip(names, grids, axes, strict=True):
        image = _map(one, study, grid, rows, columns, limits, small=len(names) > 1)
        if others:
            one.set_title(others[0].phrase(name), fontweight="bold")
    _bar(figure, axes, image, study)
    return figure


def _bar(figure: Figure, axes: list[Axes], image: Any, study: Study) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=28)
    bar.set_label(study.measure.label)
    bar.ax.yaxis.set_major_formatter(lambda value, _: study.measure.show(float(value)).replace(".0%", "%"))
    bar.outline.set_visible(False)


def _scattered(study: Study, rows: Axis, columns: Axis, look: Look) -> Figure | None:
    """Cells that are no grid, as from a random search: a point each, the best one ringed."""
    mean = study.statistic(study.measure, "mean")
    x, y = (study.cells[axis.key].astype(float).to_numpy() for axis in (columns, rows))
    have = np.isfinite(mean) & np.isfinite(x) & np.isfinite(y)
    if have.sum() < 8:
        return None
    figure, axes = look.figure(_title(study, rows, columns).partition(",")[0])
    cmap = "cividis" if study.measure.higher else "cividis_r"
    points = axes[0].scatter(x[have], y[have], c=mean[have], cmap=cmap, s=2 * look.dot, lw=0)
    best = study.ranking()[0]
    if have[best]:
        axes[0].scatter(x[best], y[best], s=5 * look.dot, facecolors="none", edgecolors=INK, lw=1.3)
        label: dict[str, Any] = {"xytext": (9, 0), "textcoords": "offset points", "va": "center", "color": INK}
        axes[0].annotate(f"best, {study.measure.show(float(mean[best]))}", (x[best], y[best]), **label)
    for which, axis in (("x", columns), ("y", rows)):
        value_axis(axes[0], which, axis.known)
        getattr(axes[0], f"set_{which}label")(axis.label)
    _bar(figure, axes, points, study)
    return figure


def _height(rows: Axis, look: Look, maps: int) -> float:
    each = 0.34 if look.paper else 0.62 if maps == 1 else 0.5
    return float(np.clip(0.9 + each * len(rows.known), 2.0, 6.5))


def _title(study: Study, rows: Axis, columns: Axis) -> str:
    name = study.measure.label
    half = ", ± half of the 95% interval" if study.most_seeds > 1 else ""
    return f"{sentence_case(name)} by {rows.label} and {columns.label}{half}"


def _grid(study: Study, rows: Axis, columns: Axis, others: list[Axis], name: Any) -> np.ndarray:
    """(rows, columns, 2) mean and half of the interval, NaN where nothing was run."""
    grid = np.full((len(rows.known), len(columns.known), 2), np.nan)
    mean, low = (study.statistic(study.measure, one) for one in ("mean", "low"))
    for place, cell in enumerate(study.cells.index):
        row, column = study.value(cell, rows), study.value(cell, columns)
        if missing(row) or missing(column) or (others and study.value(cell, others[0]) != name):
            continue
        grid[rows.known.index(row), columns.known.index(column)] = mean[place], mean[place] - low[place]
    return grid


def _map(
    axes: Axes, study: Study, grid: np.ndarray, rows: Axis, columns: Axis, limits: tuple[float, float], small: bool
) -> Any:
    from matplotlib.patches import Rectangle

    axes.set_facecolor("#F1F2F4")
    cmap = "cividis" if study.measure.higher else "cividis_r"
    image = axes.imshow(grid[..., 0], aspect="auto", cmap=cmap, vmin=limits[0], vmax=limits[1], origin="lower")
    axes.grid(False)
    written = max(grid.shape[:2]) <= (MOST_WRITTEN if not small else 6)
    for row, column in np.ndindex(*grid.shape[:2]):
        mean, half = (float(value) for value in grid[row, column])
        if not known(mean):
            axes.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, hatch="////", fill=False, edgecolor="#C9CDD3", lw=0)
            )
        if written:
            dark = known(mean) and (_lightness(mean, limits, bool(study.measure.higher))) < 0.55
            axes.text(
                column, row, _text(study, mean, half), ha="center", va="center", color="white" if dark else "#1C1E21"
            )
    axes.set_yticks(range(len(rows.known)), [value_text(value) for value in rows.known])
    axes.set_xticks(range(len(columns.known)), [value_text(value) for value in columns.known])
    axes.tick_params(length=0)
    for place in range(1, len(rows.known)):
        axes.axhline(place - 0.5, color="white", lw=1.5)
    for place in range(1, len(columns.known)):
        axes.axvline(place - 0.5, color="white", lw=1.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_ylabel(rows.label)
    axes.set_xlabel(columns.label)
    return image


def _lightness(mean: float, limits: tuple[float, float], higher: bool) -> float:
    """Of the colour behind a number, 0 to 1; cividis gets lighter as values rise."""
    share = (mean - limits[0]) / max(limits[1] - limits[0], 1e-12)
    return share if higher else 1 - share


def _text(study: Study, mean: float, half: float) -> str:
    if not known(mean):
        return DASH
    scale = 100.0 if study.measure.is_share else 1.0
    number = f"{scale * mean:.1f}" if study.measure.is_share else study.measure.show(mean)
    spread = f"{scale * half:.1f}" if study.measure.is_share else f"{half:.2g}"
    return f"{number}\n±{spread}" if known(half) else number
