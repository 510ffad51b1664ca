"""What all pictures share: sizes, axes, and the colours of Okabe and Ito, told apart with any colour vision."""

from __future__ import annotations

import gc
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7A7A7A"
WIDTH = 8.0  # inches; the same for all pictures, so that letters are of one size in the report
STYLE: dict[Any, Any] = {
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so that every machine draws the same
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Inside, figures are made in STYLE, whatever a user's matplotlibrc says.

    A figure is 100,000 objects that hold each other: looking for garbage goes through them, and not through all that lives.
    """
    import matplotlib

    aside = gc.get_freeze_count() > 0  # by somebody else, who will say when no longer
    if not aside:
        gc.freeze()
    try:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            yield
    finally:
        if not aside:
            gc.unfreeze()


def save(figure: Figure, path: Path) -> None:
    """Write it as a PNG, laid out once and drawn once: `savefig` draws all of it twice.

    Without the channel of what shines through, which nothing does.
    """
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    from fedsim.results.pictures.plain import lay_out

    canvas, dpi = FigureCanvasAgg(figure), rcParams["savefig.dpi"]
    figure.set_dpi(dpi)
    figure.set_facecolor(rcParams["savefig.facecolor"])
    if (layout := figure.get_layout_engine()) is not None:
        figure.set_layout_engine("none")  # it is called here, once
        if not lay_out(figure, canvas.get_renderer(), figure._suptitle):  # type: ignore[attr-defined]
            layout.execute(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (height, width, 3)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="png", dpi=(dpi, dpi), compress_level=3)


def figure_of(title: str, panels: int, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` side by side under a title in bold; height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    wrapped = textwrap.fill(title, int(WIDTH * 11.5))
    figure.suptitle(wrapped, x=0.008, ha="left", fontsize=10.5, fontweight="bold")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def line(axes: Axes, x: np.ndarray, y: np.ndarray, label: str, color: str, style: str = "-") -> None:
    """A curve, with its points where there are few; nothing where there are none."""
    if len(x):
        axes.plot(x, y, style, color=color, label=label, marker="o" if len(x) <= 30 else None)


def round_axis(axes: Axes) -> None:
    """The x axis counts rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def counts_axis(axis: Axis) -> None:
    """An axis of whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axis.set_major_formatter("{x:,.0f}")


def shades() -> Colormap:
    """White to navy, starting at a blue that is still told from white, which means nothing at all."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", colormaps["Blues"](np.linspace(0.16, 1.0, 256)))
