"""Names beside the points of a Pareto front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.studies.figures.style import INK, SOFT
from fedsim.studies.names import value_text
from fedsim.studies.study import Study
from fedsim.studies.varied import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

MOST_NAMED = 10
"""Points of a front that are named."""


def common_axes(study: Study, cells: np.ndarray) -> list[Axis]:
    """Axes of which all these cells have the same value."""
    return [axis for axis in study.axes if len({value_text(study.value(int(cell), axis)) for cell in cells}) == 1]


def name_front(
    figure: Figure, axes: Axes, study: Study, points: np.ndarray, front: np.ndarray, higher: tuple[bool, bool]
) -> None:
    """Names beside the points of the front, on the side where nothing can lie: along the step that begins at the point where
    it is long enough, else before the point, and the axis grows until they fit."""
    cells = [int(cell) for cell in np.flatnonzero(front)]
    cells.sort(key=lambda cell: points[cell, 0])
    if len(cells) > MOST_NAMED:
        cells = [cells[place] for place in np.unique(np.linspace(0, len(cells) - 1, MOST_NAMED).astype(int))]
    up = 1 if higher[1] else -1
    common = common_axes(study, np.flatnonzero(front))
    without = [axis.key for axis in common] if len(common) < len(study.axes) else []
    style: dict[str, Any] = {"color": INK, "fontsize": float(axes.yaxis.label.get_fontsize()) - 0.5}
    style |= {"textcoords": "offset points", "va": "bottom" if higher[1] else "top", "annotation_clip": False}
    texts = [
        axes.annotate(study.label(cell, without), points[cell], xytext=(5, 4 * up), ha="left", **style)
        for cell in cells
    ]
    figure.draw_without_rendering()
    starts = [*axes.transData.transform(points[cells])[:, 0], -np.inf]
    before = []
    for number, text in enumerate(texts):
        text.set_in_layout(False)
        if text.get_window_extent().width + 12 > starts[number + 1] - starts[number]:
            text.set_horizontalalignment("right")
            text.set_position((-5, 4 * up))
            before.append(text)
    if without:
        words = ", ".join(axis.phrase(study.value(cells[0], axis)) for axis in common)
        place: dict[str, Any] = {"ha": "right", "va": "top" if higher[1] else "bottom", "fontsize": style["fontsize"]}
        y = 0.975 if higher[1] else 0.025  # where the arrow has its room
        axes.text(0.985, y, f"whole front: {words}", transform=axes.transAxes, color=SOFT, **place)
    _make_room(figure, axes, before)
    _drop_overlaps(figure, texts)


def _make_room(figure: Figure, axes: Axes, texts: list[Annotation]) -> None:
    """Move the left end of the axis until every name begins inside it."""
    for _ in range(4):
        figure.draw_without_rendering()
        frame = axes.get_window_extent()
        over = frame.x0 + 4 - min((text.get_window_extent().x0 for text in texts), default=frame.x0 + 4)
        if over <= 0:
            return
        left, right = axes.transData.transform([(one, axes.get_ylim()[0]) for one in axes.get_xlim()])[:, 0]
        grown = left - over * (right - left) / max(right - left - over, 1.0) - 1
        axes.set_xlim(axes.transData.inverted().transform((grown, frame.y0))[0], axes.get_xlim()[1])


def _drop_overlaps(figure: Figure, texts: list[Annotation]) -> None:
    """Leave out a name that would lie over another: the ends of the front keep theirs."""
    figure.draw_without_rendering()
    order = [0, len(texts) - 1, *range(1, len(texts) - 1)] if len(texts) > 1 else list(range(len(texts)))
    kept: list[Any] = []
    for place in order:
        box = texts[place].get_window_extent()
        if any(box.overlaps(other) for other in kept):
            texts[place].set_visible(False)
        else:
            kept.append(box)
