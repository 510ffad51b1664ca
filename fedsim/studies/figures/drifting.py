"""Accuracy on what comes next over rounds, a panel a kind of drift, with the rounds in which data drift."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd

from fedsim.results.pictures.style import round_axis
from fedsim.studies.figures.along import over_rounds
from fedsim.studies.figures.curves import draw_line
from fedsim.studies.figures.marks import measure_axis
from fedsim.studies.figures.style import INK, MOST_SERIES, Look, series_of
from fedsim.studies.names import BY_NAME, missing
from fedsim.studies.study import Study
from fedsim.studies.varied import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND = "drift._target_"
MEASURE = BY_NAME["prequential_accuracy"]


def prequential_curves(study: Study, look: Look) -> Figure | None:
    """Of every cell, the mean over seeds; None where no run was on a stream, or there are too many cells to tell apart."""
    curves = over_rounds(study, MEASURE.name)
    if curves is None:
        return None
    kind = study.axis(KIND)
    kinds = [None] if kind is None else list(kind.values)
    names = {int(cell): study.label(int(cell), without=(KIND,)) for cell in study.cells.index}
    told = list(dict.fromkeys(names.values()))
    if len(told) > MOST_SERIES:
        return None
    series = dict(zip(told, series_of(len(told), False, look), strict=True))
    band = "; bands are 95% intervals over seeds" if study.most_seeds > 1 else "; one seed each"
    title = f"Accuracy on what comes next{band}; dashed: data drift"
    figure, axes = look.figure(title, len(kinds), height=2.0 if look.paper else 2.9, columns=3)
    for number, (value, one) in enumerate(zip(kinds, axes, strict=True)):
        cells = [cell for cell in names if kind is None or study.value(cell, kind) == value]
        for cell in cells:
            draw_line(one, curves, cell, names[cell], series[names[cell]])
        _mark(one, study, cells)
        round_axis(one)
        measure_axis(one, "y", MEASURE, curves["mean"].to_numpy())
        one.set_ylim(0, 1)
        if kind is not None:
            one.set_title(_said(kind, value), fontweight="bold")
        if number % 3:
            one.set_ylabel("")
            one.tick_params(labelleft=False)
    handles = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    shown = [name for name in told if name in handles]
    if len(shown) > 1:
        figure.legend([handles[name] for name in shown], shown, loc="outside right center", handlelength=2.6)
    return figure


def _said(kind: Axis, value: object) -> str:
    return "no drift" if value == "Undrifted" else kind.phrase(value).lower()


def _mark(axes: Axes, study: Study, cells: list[int]) -> None:
    """A line in each round in which a drift of one of these cells begins."""
    for round in sorted(_begun(study, cells)):
        axes.axvline(round, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def _begun(study: Study, cells: list[int]) -> set[int]:
    runs: pd.DataFrame = study.tables.runs
    if "streams.drift" not in runs:
        return set()
    own = set(study.runs.loc[study.runs["cell"].isin(cells), "run"])
    told = runs.loc[runs["run"].astype(str).isin(own), "streams.drift"]
    return {int(event["round"]) for events in told if not missing(events) for event in json.loads(events)}
