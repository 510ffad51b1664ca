"""Plain panels, laid out and drawn with less work than matplotlib takes for any figure.

matplotlib makes five artists for every tick, and lays a figure out by measuring all of it twice, which was two thirds of the
time of a picture. Panels in a row whose axes are straight are told by a few numbers: their ticks become two collections of
lines and a text each, and their margins follow from the sizes of the words. What is less plain is left to matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.backend_bases import RendererBase
    from matplotlib.figure import Figure
    from matplotlib.text import Text

PAD, LABEL_PAD, TICK, TICK_PAD = 3.0, 4.0, 3.5, 3.5
"""Points, as matplotlib has them: around everything; from a label to the words at ticks; a tick; from a tick to its word."""

USUAL = (
    {"bottom": True, "top": False, "labelbottom": True, "labeltop": False, "gridOn": True},
    {"left": True, "right": False, "labelleft": True, "labelright": False, "gridOn": True},
)
"""How ticks are drawn along x and y where nobody has asked for anything else."""


class Ticks(NamedTuple):
    """Of an axis. places: in data. words: at each. width, height: of the largest word, in pixels."""

    places: np.ndarray
    words: list[str]
    width: float
    height: float


def lay_out(figure: Figure, renderer: RendererBase, title: Text | None) -> bool:
    """Place the panels, and draw their ticks as lines and texts; False, and no artist changed, where the figure is not plain.

    title: of the figure, above all.
    """
    panels = figure.axes
    if not panels or figure.legends or not all(_plain(axes, len(panels)) for axes in panels):
        return False
    for _ in range(2):  # how many ticks there is room for depends on the size
        ticks = [(_ticks(axes.xaxis, renderer), _ticks(axes.yaxis, renderer)) for axes in panels]
        known = [(x, y) for x, y in ticks if x is not None and y is not None]
        if len(known) < len(panels):
            return False
        _place(figure, renderer, title, known)
    for axes, (x, y) in zip(panels, known, strict=True):
        _exchange(figure, axes, x, y)
    return True


def _plain(axes: Axes, panels: int) -> bool:
    """Whether the axes are one of `panels` in a row, straight, ticked as usual, and no word of theirs is outside."""
    from matplotlib.ticker import FixedLocator, NullLocator

    spec, legend = axes.get_subplotspec(), axes.get_legend()
    if spec is None or spec.get_gridspec().get_geometry() != (1, panels) or axes.get_aspect() != "auto":
        return False
    if axes.texts or axes.images or axes.tables or axes.child_axes or not axes.axison:
        return False
    if any(axes.get_title(place) for place in ("left", "center", "right")):
        return False
    if legend is not None and legend.get_bbox_to_anchor().bounds != axes.bbox.bounds:
        return False
    return all(
        axis.get_visible()
        and axis.get_scale() == "linear"
        and axis.get_tick_params("major") == usual
        and isinstance(axis.get_minor_locator(), NullLocator)
        and not isinstance(axis.get_major_locator(), FixedLocator | NullLocator)
        for axis, usual in zip((axes.xaxis, axes.yaxis), USUAL, strict=True)
    )


def _ticks(axis: Axis, renderer: RendererBase) -> Ticks | None:
    """Those in view; None where they are not told by words alone: by a power of ten beside the axis, or by formulas."""
    places, formatter = np.asarray(axis.get_majorticklocs(), dtype=float), axis.get_major_formatter()
    words = formatter.format_ticks(places)  # type: ignore[arg-type]
    if formatter.get_offset() or any("$" in word for word in words):
        return None
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    seen = [low - slack <= place <= high + slack for place in places]
    kept = [word for word, one in zip(words, seen, strict=True) if one]
    sizes = [renderer.get_text_width_height_descent(word, _font(), False)[:2] for word in kept] or [(0.0, 0.0)]
    return Ticks(places[seen], kept, max(size[0] for size in sizes), max(size[1] for size in sizes))


def _font() -> Any:
    """Of the words at ticks."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    return FontProperties(size=rcParams["xtick.labelsize"])


def _place(figure: Figure, renderer: RendererBase, title: Text | None, ticks: list[tuple[Ticks, Ticks]]) -> None:
    """Panels of one width side by side, each with room for its words; labels at the margins' outer edges."""
    width, height, point = figure.bbox.width, figure.bbox.height, figure.dpi / 72
    pad, beside = PAD * point, (TICK + TICK_PAD + LABEL_PAD) * point
    top = height - pad
    if title is not None:
        title.set_position((title.get_position()[0], top / height))
        title.set_verticalalignment("top")
        top -= title.get_window_extent(renderer).height + 2 * pad
    lefts, bottoms, rights = [], [], []
    for axes, (x, y) in zip(figure.axes, ticks, strict=True):
        lefts.append(pad + axes.yaxis.label.get_window_extent(renderer).width + beside + y.width)
        bottoms.append(pad + axes.xaxis.label.get_window_extent(renderer).height + beside + x.height)
        rights.append(max(4 * pad, pad + x.width / 2))  # the last word may stand at the very end
    bottom, at = max(bottoms), 0.0
    room = (width - sum(lefts) - sum(rights)) / len(ticks)
    for axes, left, right in zip(figure.axes, lefts, rights, strict=True):
        at += left
        axes.set_position((at / width, bottom / height, room / width, (top - bottom) / height))
        axes.yaxis.set_label_coords((pad - left) / room, 0.5)
        axes.yaxis.label.set_verticalalignment("top")
        axes.xaxis.set_label_coords(0.5, (pad - bottom) / (top - bottom))
        axes.xaxis.label.set_verticalalignment("bottom")
        at += room + right


def _exchange(figure: Figure, axes: Axes, x: Ticks, y: Ticks) -> None:
    """Draw the ticks, their words and the grid, in pixels, and have matplotlib draw none."""
    from matplotlib import rcParams
    from matplotlib.collections import LineCollection
    from matplotlib.ticker import NullLocator
    from matplotlib.transforms import IdentityTransform

    point, pixels = figure.dpi / 72, IdentityTransform()
    left, bottom, right, top = axes.bbox.extents
    tick, reach = TICK * point, (TICK + TICK_PAD) * point
    across = axes.get_xaxis_transform().transform([(place, 0) for place in x.places] or np.zeros((0, 2)))[:, 0]
    up = axes.get_yaxis_transform().transform([(0, place) for place in y.places] or np.zeros((0, 2)))[:, 1]
    grid = [((at, bottom), (at, top)) for at in across] + [((left, at), (right, at)) for at in up]
    marks = [((at, bottom), (at, bottom - tick)) for at in across] + [((left, at), (left - tick, at)) for at in up]
    thin = LineCollection(
        grid, colors=rcParams["grid.color"], linewidths=rcParams["grid.linewidth"], zorder=0.5, transform=pixels
    )
    axes.add_collection(thin, autolim=False)
    width, color = rcParams["xtick.major.width"], rcParams["xtick.color"]
    figure.add_artist(LineCollection(marks, colors=color, linewidths=width, transform=pixels))
    words = {"fontproperties": _font(), "transform": pixels, "color": color}
    for at, word in zip(across, x.words, strict=True):
        figure.text(at, bottom - reach, word, va="top", ha="center", **words)
    for at, word in zip(up, y.words, strict=True):
        figure.text(left - reach, at, word, va="center_baseline", ha="right", **words)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(NullLocator())
