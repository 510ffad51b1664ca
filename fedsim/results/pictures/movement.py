"""How far each feature, the label and the prediction moved from the first window, window by window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedsim.results.finished import Run
from fedsim.results.movement import moved_of
from fedsim.results.pictures.style import ORANGE, figure_of, round_axis
from fedsim.results.stream_words import events_of
from fedsim.streams.movement import LARGE, SMALL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 40
"""Features that are drawn: those that moved most, in their order."""
COLOURS = ("#F2F2F2", "#A6CEE3", "#0072B2")
"""Of no change that counts, a small and a large one."""


def data_drift(run: Run) -> Figure | None:
    """A field a feature and window, in one of three colours, and the drift's beginnings."""
    from matplotlib.colors import BoundaryNorm, ListedColormap

    moved = moved_of(run)
    if moved is None:
        return None
    kept = np.sort(np.argsort(-np.nanmax(moved.index, axis=1), kind="stable")[:MOST])
    names, index = [moved.names[place] for place in kept], moved.index[kept]
    largest = moved.names[int(np.argmax(np.nanmax(moved.index, axis=1)))]
    title = f"Population stability index against the first window; {largest} moved most ({np.nanmax(moved.index):.2f})"
    figure, (axes,) = figure_of(title, 1, height=1.4 + 0.16 * len(names))
    width = int(moved.rounds[0]) if len(moved.rounds) < 2 else int(np.diff(moved.rounds).min())
    edges = [*(moved.rounds - width + 0.5), moved.rounds[-1] + 0.5]
    top = max(float(np.nanmax(index)), 2 * LARGE)
    colours = axes.pcolormesh(
        edges,
        np.arange(len(names) + 1),
        index,
        cmap=ListedColormap(COLOURS),
        norm=BoundaryNorm([0, SMALL, LARGE, top], len(COLOURS)),
        edgecolors="white",
        linewidth=0.5,
    )
    bar = figure.colorbar(colours, ax=axes, ticks=[0, SMALL, LARGE], spacing="uniform")
    bar.ax.set_yticklabels(["0", f"{SMALL}: small", f"{LARGE}: large"])
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=6.5)
    axes.invert_yaxis()
    axes.grid(visible=False)
    for event in events_of(run):
        axes.axvline(event["round"], color=ORANGE, linewidth=1.4)
    round_axis(axes)
    return figure
