"""The study's measure against a number that varied, a line for each value of another axis; and against names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedsim.results.formats import known
from fedsim.studies.figures.marks import EndLabel, error_bars, label_ends, measure_axis, value_axis
from fedsim.studies.figures.style import INK, MOST_SERIES, Look, Series, series_of
from fedsim.studies.names import missing, sentence_case
from fedsim.studies.statistics import half_width
from fedsim.studies.study import Study
from fedsim.studies.varied import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTNERS = {"privacy.epsilon": "population.num_clients", "population.num_clients": "privacy.epsilon"}
MOST_NAMES = 20
MOST_JOINED = 15
"""Values of an axis up to which they are joined by a line; more were drawn by chance, not laid out on a grid."""
DODGE = 2.0
"""Points by which lines are moved aside, so that their intervals do not lie over each other."""


def against(study: Study, axis: Axis, look: Look) -> Figure | None:
    """The measure against a numeric axis, with intervals; runs that have no value of it as dashed lines."""
    line = _line_axis(study, axis)
    table = averaged(study, [axis.key, *([line.key] if line else [])])
    table = table[table["mean"].notna()]
    x = table[axis.key].astype(float)
    if x.dropna().nunique() < 2:
        return None
    rest = [one.label for one in study.axes if one is not axis and one is not line]
    figure, (axes,) = look.figure(_title(study, axis, rest))
    groups: list[tuple[Any, str]] = [(value, line.phrase(value)) for value in line.values] if line else [(None, "")]
    series = series_of(len(groups), line is None or line.numeric, look)
    ends = []
    for place, ((value, label), one) in enumerate(zip(groups, series, strict=True)):
        mine = table if line is None else table[_same(table[line.key], value)]
        ends += _draw(axes, mine, axis, label, one, DODGE * (place - (len(groups) - 1) / 2))
    value_axis(axes, "x", axis.known)
    axes.autoscale_view()
    measure_axis(axes, "y", study.measure, table["mean"].to_numpy())
    axes.set_xlabel(axis.label)
    if len(ends) > 1 or (ends and ends[0].text):
        label_ends(figure, axes, ends)
    return figure


def _line_axis(study: Study, axis: Axis) -> Axis | None:
    others = [one for one in study.axes if one is not axis and 1 < len(one.values) <= MOST_SERIES]
    partner = PARTNERS.get(axis.key)
    return min(others, key=lambda one: (one.key != partner, one.numeric), default=None)


def averaged(study: Study, keys: list[str]) -> pd.DataFrame:
    """A row a combination of these axes: mean, low, high, n of the measure; each seed first averaged over the other axes."""
    name = study.measure.name
    long = study.by_seed[[name]].reset_index().join(study.cells[keys], on="cell")
    by_seed = long.groupby([*keys, "seed"], dropna=False)[name].mean()
    found = by_seed.groupby(level=list(range(len(keys))), dropna=False).agg(["mean", "std", "count"])
    half = half_width(found["std"], found["count"])
    return found.assign(low=found["mean"] - half, high=found["mean"] + half, n=found["count"]).reset_index()


def _same(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if missing(value) else column == value


def _title(study: Study, axis: Axis, rest: list[str], by: str = "against") -> str:
    measure = study.measure.label
    mean = f", averaged over {' and '.join(rest)}" if rest else ""
    bars = "; bars are 95% intervals over seeds" if study.most_seeds > 1 else "; one seed each, so no intervals"
    return f"{sentence_case(measure)} {by} {axis.label}{mean}{bars}"


def _draw(axes: Axes, table: pd.DataFrame, axis: Axis, label: str, series: Series, aside: float) -> list[EndLabel]:
    """One line; gives the labels of its end and of its dashed line."""
    from matplotlib.transforms import ScaledTranslation

    x = table[axis.key].astype(float)
    line, without = table[x.notna()].sort_values(axis.key), table[x.isna()]
    ends = []
    if len(line):
        at = line[axis.key].astype(float)
        moved = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
        joined = len(axis.known) <= MOST_JOINED
        mark: dict[str, Any] = {"marker": series.marker, "color": series.color, "ls": series.dash if joined else "none"}
        for column in ("mean", "low", "high"):  # what is moved aside counts for no limits by itself
            points = np.column_stack([at, line[column]])
            axes.update_datalim(points[np.isfinite(points).all(1)])
        axes.plot(at, line["mean"], zorder=3, transform=moved, **mark)
        error_bars(axes, at, line["mean"], line["low"], line["high"], series.color, transform=moved)
        ends.append(EndLabel(float(line["mean"].iloc[-1]), label, series.color))
    for value in without["mean"]:
        axes.axhline(value, color=series.color, lw=1.2, ls=(0, (2, 2)), zorder=1)
        ends.append(EndLabel(float(value), ", ".join(filter(None, (label, axis.phrase(None)))), series.color))
    return ends


def by_name(study: Study, axis: Axis, look: Look) -> Figure | None:
    """The measure of each name of an axis, best first: mean, interval, and the seeds themselves as small dots."""
    table = averaged(study, [axis.key])
    table = (
        table[table["mean"].notna()]
        .sort_values("mean", ascending=not study.measure.higher, kind="stable")
        .head(MOST_NAMES)
    )
    if len(table) < 2:
        return None
    rest = [one.label for one in study.axes if one is not axis]
    height = 0.9 + 0.34 * len(table)
    figure, (axes,) = look.figure(_title(study, axis, rest, "by"), height=height * (0.8 if look.paper else 1.0))
    color = series_of(1, True, look)[0].color
    long = study.by_seed[[study.measure.name]].reset_index().join(study.cells[[axis.key]], on="cell")
    seeds = long.groupby([axis.key, "seed"], dropna=False)[study.measure.name].mean()
    places = np.arange(len(table))[::-1]
    for place, (_, row) in zip(places, table.iterrows(), strict=True):
        own = seeds[
            [
                missing(one) if missing(row[axis.key]) else one == row[axis.key]
                for one in seeds.index.get_level_values(0)
            ]
        ]
        axes.scatter(own, np.full(len(own), place), s=14, color=INK, alpha=0.7, lw=0, zorder=4)
        if known(row["low"]):
            axes.plot(
                [row["low"], row["high"]],
                [place, place],
                color=color,
                lw=2.4,
                solid_capstyle="round",
                zorder=1,
                alpha=0.55,
            )
    axes.scatter(table["mean"], places, s=2 * look.dot, color=color, zorder=3)
    axes.set_yticks(
        places, [axis.phrase(None if missing(value) else value) for value in table[axis.key]], parse_math=False
    )
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    measure_axis(axes, "x", study.measure, table["mean"].to_numpy())
    return figure
