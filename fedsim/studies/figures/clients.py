"""How clients fare in each cell, and which client holds how much of which class in each partition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from fedsim.results.finished import read_run, tenth_of
from fedsim.results.formats import percent
from fedsim.results.pictures.style import shades
from fedsim.studies.figures.style import CATEGORIES, INK, Look
from fedsim.studies.study import Study
from fedsim.types import FedsimError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CELLS = 24
MOST_PARTITIONS, MOST_CLASSES, MOST_COLUMNS = 4, 20, 200
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def client_accuracy(study: Study, look: Look) -> Figure | None:
    """Accuracy over clients of each cell, its seeds together: the middle half, all but a tenth, the median and the worst 10%."""
    cells = _chosen(study)
    accuracy = _accuracy(study, cells)
    if accuracy is None:
        return None
    cells = [cell for cell in cells if cell in accuracy]
    some = "" if len(cells) == len(study.cells) else f": {len(cells)} of {len(study.cells)} cells, best to worst"
    title = f"How accuracy spreads over clients{some}"
    height = (0.75 + 0.21 * len(cells)) if look.paper else (1.25 + 0.3 * len(cells))
    figure, (axes,) = look.figure(title, height=height)
    for place, cell in enumerate(reversed(cells)):
        _spread(axes, place, accuracy[cell], look)
    axes.set_yticks(range(len(cells)), [study.label(cell) for cell in reversed(cells)], parse_math=False)
    axes.set_ylim(-0.7, len(cells) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("accuracy on the client's own held-out data")
    axes.xaxis.set_major_formatter(lambda value, _: percent(value).replace(".0%", "%"))
    figure.legend(loc="outside lower center", ncols=2 if look.paper else 4, handlelength=1.6)
    return figure


def _spread(axes: Axes, place: int, values: np.ndarray, look: Look) -> None:
    """One row; the lowest row names the marks for the legend."""
    low, first, middle, third, high = np.quantile(values, QUANTILES)
    worst = np.sort(values)[: tenth_of(len(values))].mean()
    names = ("90% of clients", "half of clients", "median", "mean of the worst 10%")
    ends, half, median, tenth = names if place == 0 else (None,) * 4
    line: dict[str, Any] = {"color": CATEGORIES[0], "solid_capstyle": "butt"}
    axes.plot([low, high], [place] * 2, lw=1.2, zorder=1, label=ends, **line)
    axes.plot([first, third], [place] * 2, lw=4 if look.paper else 6, alpha=0.45, zorder=2, label=half, **line)
    axes.plot([middle], [place], "o", color=INK, zorder=4, ls="none", label=median)
    axes.plot([worst], [place], "D", color=CATEGORIES[1], zorder=3, ls="none", label=tenth)


def _chosen(study: Study) -> list[int]:
    cells = [int(cell) for cell in study.cells.index]
    if len(cells) <= MOST_CELLS:
        return cells
    ranked = study.ranking()
    if not ranked:
        return []
    return [ranked[place] for place in np.unique(np.linspace(0, len(ranked) - 1, MOST_CELLS).astype(int))]


def _accuracy(study: Study, cells: list[int]) -> dict[int, np.ndarray] | None:
    """Cell -> (clients of all its runs,) their accuracies; None where no cell has two."""
    cell_of = study.runs.loc[study.runs["cell"].isin(cells)].set_index("run")["cell"]
    names = ", ".join("'" + run.replace("'", "''") + "'" for run in cell_of.index)
    try:
        found = study.tables.sql(f"SELECT run, accuracy FROM clients WHERE accuracy IS NOT NULL AND run IN ({names})")
    except FedsimError:  # no run has a table of clients, or none with accuracies
        return None
    found = found[np.isfinite(pd.to_numeric(found["accuracy"], errors="coerce"))]
    grouped = found.groupby(found["run"].astype(str).map(cell_of))["accuracy"]
    kept = {int(cell): values.to_numpy(dtype=float) for cell, values in grouped if len(values) > 1}
    return kept or None


class Holding(NamedTuple):
    """Who holds what in one partition. counts: (clients, classes)."""

    label: str
    counts: np.ndarray
    classes: list[str]


def client_classes(study: Study, look: Look) -> Figure | None:
    """Shares of classes in what each client holds, a panel for each partition that was tried (some of them, if many)."""
    holdings = _holdings(study)
    if not holdings:
        return None
    most = max(len(one.classes) for one in holdings)
    height = max(1.9, 0.9 + (0.13 if look.paper else 0.19) * min(most, MOST_CLASSES))
    columns = 2 if len(holdings) == 4 else 3
    figure, panels = look.figure(
        "Which client holds how much of which class", len(holdings), height=height, columns=columns
    )
    for number, (holding, axes) in enumerate(zip(holdings, panels, strict=True)):
        counts, names = _commonest(holding)
        shares = _columns(counts)
        extent = (0.0, float(len(counts)), len(names) - 0.5, -0.5)
        held = np.ma.masked_equal(shares, 0)  # nothing held stays white
        image = axes.imshow(held, aspect="auto", cmap=shades(), vmin=0, vmax=1, extent=extent, interpolation="nearest")
        axes.grid(False)
        axes.set_yticks(
            range(len(names)), names if number % columns == 0 or len(holdings) == 1 else [], parse_math=False
        )
        axes.tick_params(axis="y", length=0)
        axes.set_xticks([])
        axes.set_title(holding.label or f"{len(counts):,} clients", fontweight="bold")
    figure.supxlabel("clients, by their most common class", fontsize=look.font)
    bar = figure.colorbar(image, ax=panels, pad=0.015, aspect=30)
    bar.set_label("share of what the client holds")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    bar.outline.set_visible(False)
    return figure


def _holdings(study: Study) -> list[Holding]:
    """One for each partition and population, read from the run that stands for its first cell."""
    told = ("name", "population.num_clients")
    keys = [one for one in study.axes if one.key.startswith(("partition.", "dataset.")) or one.key in told]
    firsts: dict[str, int] = {}
    for cell in study.cells.index:
        firsts.setdefault(", ".join(axis.phrase(study.value(cell, axis)) for axis in keys), int(cell))
    labels = list(firsts)
    if len(labels) > MOST_PARTITIONS:
        labels = [labels[place] for place in np.linspace(0, len(labels) - 1, MOST_PARTITIONS).round().astype(int)]
    found = (_holding(study, label, firsts[label]) for label in labels)
    return [one for one in found if one is not None]


def _holding(study: Study, label: str, cell: int) -> Holding | None:
    try:
        run = read_run(study.folder(cell))
    except (FedsimError, OSError):
        return None
    counts = run.class_counts
    if counts is None or counts.sum() == 0:
        return None
    names = [str(name) for name in (run.summary.get("dataset") or {}).get("classes") or ()]
    return Holding(
        label, counts, names if len(names) == counts.shape[1] else [str(one) for one in range(counts.shape[1])]
    )


def _commonest(holding: Holding) -> tuple[np.ndarray, list[str]]:
    """All classes, or the most common ones of very many; clients sorted by what they hold most of."""
    counts, names = holding.counts, holding.classes
    if len(names) > MOST_CLASSES:
        order = np.argsort(-counts.sum(0), kind="stable")[:MOST_CLASSES]
        counts, names = counts[:, order], [names[place] for place in order]
    size = np.maximum(counts.sum(1), 1)
    order = np.lexsort((-counts.max(1) / size, counts.argmax(1)))
    return counts[order], [name if len(name) <= 14 else f"{name[:13]}…" for name in names]


def _columns(counts: np.ndarray) -> np.ndarray:
    """(classes, columns) shares; neighbours share a column where there are very many clients."""
    starts = np.linspace(0, len(counts), min(len(counts), MOST_COLUMNS) + 1).astype(int)[:-1]
    columns = np.add.reduceat(counts, starts, axis=0, dtype=np.int64).T
    return columns / np.maximum(columns.sum(0), 1)
