"""A study's table as a picture, with its intervals: a line a column, or a point a name; nothing is averaged that it tells apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.study_tables import Grid
from fedsim.results.pictures.style import BLUE, GREY, ORANGE, STYLE, figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (BLUE, ORANGE, GREY)
STYLES = ("-", "--", ":")
MARKERS = "os^DvP*X"


def figure(grid: Grid, title: str, across: str, up: str) -> Figure:
    """Columns that share the words before the comma share a colour, those that share the words after it the kind of line.

    title: above all. across, up: the labels of the rows' axis and of what is told.
    """
    import matplotlib as mpl

    headings = list(dict.fromkeys(heading for row in grid.values() for heading in row))
    first, second = (list(dict.fromkeys(heading.partition(", ")[part] for heading in headings)) for part in (0, 2))
    with mpl.rc_context(STYLE):
        made, (axes,) = figure_of(title, 1)
        for heading in headings:
            points = [(_number(row), of_row[heading]) for row, of_row in grid.items() if heading in of_row]
            before, _, after = heading.partition(", ")
            axes.errorbar(
                [x for x, _ in points],
                [mean.mean for _, mean in points],
                yerr=[mean.half or 0.0 for _, mean in points],
                color=COLOURS[first.index(before) % len(COLOURS)],
                linestyle=STYLES[second.index(after) % len(STYLES)],
                marker="os^"[second.index(after) % 3],
                capsize=2.5,
                label=heading,
            )
        ticks = [_number(row) for row in grid]
        if min(ticks) > 0 and max(ticks) >= 100 * min(ticks):
            axes.set_xscale("log")
        axes.set_xticks(ticks, list(grid))
        axes.minorticks_off()
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.legend(loc="best")
    return made


def scatter(grid: Grid, title: str, across: str, up: str) -> Figure:
    """Rows that are names: a point each, by two columns; one that is told by nothing is left out.

    title: above all. across, up: the headings of the two columns.
    """
    import matplotlib as mpl

    points = {name: (row[across].mean, row[up]) for name, row in grid.items() if across in row and up in row}
    with mpl.rc_context(STYLE):
        made, (axes,) = figure_of(title, 1)
        for place, (name, (x, mean)) in enumerate(points.items()):
            color, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            axes.errorbar(
                x,
                mean.mean,
                yerr=mean.half or 0.0,
                color=color,
                marker=marker,
                ms=5,
                ls="none",
                capsize=2.5,
                label=name,
            )
        places = [x for x, _ in points.values()]
        if min(places) > 0 and max(places) >= 10 * min(places):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.08)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        made.legend(loc="outside right center")
    return made


def _number(row: str) -> float:
    return float(row.replace(",", ""))
