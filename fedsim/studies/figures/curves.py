"""Learning curves: the mean over seeds of each cell, with the interval of that mean as a band."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from fedsim.results.pictures.style import round_axis
from fedsim.studies.figures.along import Along, over_costs, over_rounds
from fedsim.studies.figures.marks import EndLabel, is_wide, label_ends, measure_axis
from fedsim.studies.figures.style import FAINT, MOST_SERIES, Look, Series, series_of
from fedsim.studies.names import sentence_case
from fedsim.studies.study import Study
from fedsim.studies.varied import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 6
SHOWN = 5
"""Cells in colour where there are too many for all: the best; the others are drawn in grey."""
MOST_GREY = 200
LONG = 22
"""Letters of a name above which names stand in the corner below the curves, not beside their ends."""


class Panel(NamedTuple):
    """One of several axes. lines: (cell, label, series) of each line in colour."""

    title: str
    lines: list[tuple[int, str, Series]]


def learning_curves(study: Study, look: Look, along: Along | None = None) -> Figure | None:
    """The study's measure over rounds, or along what was spent by then."""
    curves = over_rounds(study) if along is None else over_costs(study, along)
    if curves is None:
        return None
    panels, color_axis = _panels(study, look)
    figure, axes = look.figure(_title(study, along), len(panels), height=_height(look, len(panels)), columns=3)
    drawn = {cell for panel in panels for cell, _, _ in panel.lines}
    everything = curves["mean"].to_numpy()
    for panel, one in zip(panels, axes, strict=True):
        if len(panels) == 1:
            _grey(one, curves, [cell for cell in study.cells.index if cell not in drawn])
        for cell, label, series in panel.lines:
            draw_line(one, curves, cell, label, series)
        _across(one, curves, along)
        measure_axis(one, "y", study.measure, everything)
        if panel.title:
            one.set_title(panel.title, fontweight="bold")
    limits = np.array([one.get_ylim() for one in axes])
    for number, one in enumerate(axes):
        one.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        if number % 3:
            one.set_ylabel("")
            one.tick_params(labelleft=False)
        if number + 3 < len(axes):
            one.set_xlabel("")
    _name_lines(figure, axes, panels, curves, color_axis, along is None)
    return figure


def _across(axes: Axes, curves: pd.DataFrame, along: Along | None) -> None:
    """The x axis: rounds, or a cost, logarithmic where some cells spend far more than others in all."""
    places = curves.index.get_level_values(1).to_numpy(dtype=float)
    first, last = float(places.min()), float(places.max())
    if along is None:
        round_axis(axes)
        axes.set_xlim(first - 0.02 * (last - first), last + 0.02 * (last - first))  # points at the ends are whole
        return
    totals = curves.reset_index(level=1).groupby(level="cell")["cost"].max().to_numpy(dtype=float)
    if is_wide(totals) and first > 0:
        measure_axis(axes, "x", along.measure, places)
    else:
        measure_axis(axes, "x", along.measure, np.array([0.0, last]))
        axes.set_xlim(0, 1.02 * last)


def _height(look: Look, panels: int) -> float | None:
    return None if panels == 1 else (2.0 if look.paper else 2.9)


def _title(study: Study, along: Along | None) -> str:
    band = "; bands are 95% intervals over seeds" if study.most_seeds > 1 else "; one seed each"
    over = "while training" if along is None else f"against {along.measure.label}"
    return f"{sentence_case(study.measure.label)} {over}{band}"


def _panels(study: Study, look: Look) -> tuple[list[Panel], Axis | None]:
    """How lines are dealt out: colours by one axis; of two axes the other makes the panels; of more, the best alone in colour."""
    axes = study.axes
    if len(axes) == 1 and len(study.cells) <= MOST_SERIES:
        return [Panel("", _colored(study, list(study.cells.index), axes[0], look))], None
    if len(axes) == 2:
        facet, color = sorted(axes, key=lambda axis: (len(axis.values), axis.numeric))
        if len(facet.values) <= MOST_PANELS and len(color.values) <= MOST_SERIES:
            panels = [
                Panel(facet.phrase(value), _colored(study, _cells_with(study, facet, value), color, look))
                for value in facet.values
            ]
            return [panel for panel in panels if panel.lines], color
    best = (study.ranking() or list(study.cells.index))[:SHOWN]
    series = series_of(len(best), False, look)
    return [Panel("", [(cell, study.label(cell), one) for cell, one in zip(best, series, strict=True)])], None


def _cells_with(study: Study, axis: Axis, value: object) -> list[int]:
    return [cell for cell in study.cells.index if study.value(cell, axis) == value]


def _colored(study: Study, cells: list[int], axis: Axis, look: Look) -> list[tuple[int, str, Series]]:
    series = series_of(len(axis.values), axis.numeric, look)
    places = {value: place for place, value in enumerate(axis.values)}
    values = [study.value(cell, axis) for cell in cells]
    return [(cell, axis.phrase(value), series[places[value]]) for cell, value in zip(cells, values, strict=True)]


def draw_line(axes: Axes, curves: pd.DataFrame, cell: int, label: str, series: Series) -> None:
    """A cell's mean with its interval; nothing where it has no curve. curves: see `over_rounds`."""
    if cell not in curves.index.get_level_values("cell"):
        return
    curve = curves.loc[cell]
    x = curve.index.to_numpy(dtype=float)
    few = len(x) <= 20
    band = curve["low"].notna().to_numpy()
    axes.fill_between(x, curve["low"], curve["high"], where=band.tolist(), color=series.color, alpha=0.16, lw=0)
    every = None if few else max(1, len(x) // 8)
    axes.plot(
        x, curve["mean"], color=series.color, ls=series.dash, marker=series.marker, markevery=every, label=label, ms=3.6
    )


def _grey(axes: Axes, curves: pd.DataFrame, cells: list[int]) -> None:
    from matplotlib.collections import LineCollection

    have = set(curves.index.get_level_values("cell"))
    chosen = [cell for cell in cells if cell in have]
    if len(chosen) > MOST_GREY:
        chosen = [chosen[place] for place in np.linspace(0, len(chosen) - 1, MOST_GREY).astype(int)]
    lines = [
        np.column_stack([curves.loc[cell].index.to_numpy(float), curves.loc[cell]["mean"].to_numpy()])
        for cell in chosen
    ]
    if lines:
        axes.add_collection(LineCollection(lines, colors=FAINT, lw=0.8, zorder=1, label=f"the {len(cells)} others"))


def _name_lines(
    figure: Figure,
    axes: list[Axes],
    panels: list[Panel],
    curves: pd.DataFrame,
    color_axis: Axis | None,
    ends_together: bool,
) -> None:
    if len(panels) == 1:
        found = set(curves.index.get_level_values("cell"))
        ends = [
            EndLabel(float(curves.loc[cell]["mean"].iloc[-1]), label, series.color)
            for cell, label, series in panels[0].lines
            if cell in found
        ]
        if max((len(one.text) for one in ends), default=0) > LONG or (len(ends) > 1 and not ends_together):
            rises = curves["mean"].iloc[-1] >= curves["mean"].iloc[0]
            axes[0].legend(loc="lower right" if rises else "upper right")
        elif len(ends) > 1:
            label_ends(figure, axes[0], ends)
        return
    handles = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    assert color_axis is not None
    order = [color_axis.phrase(value) for value in reversed(color_axis.values) if color_axis.phrase(value) in handles]
    figure.legend([handles[label] for label in order], order, loc="outside right center", handlelength=2.6)
