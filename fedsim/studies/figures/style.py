"""Two looks, for a screen and for a two-column paper, and the marks that tell series apart in colour and in grey."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.results.pictures.style import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A7A7A")
"""Okabe and Ito's, told apart with any colour vision."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (9, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
MOST_SERIES = len(CATEGORIES)
INK, SOFT, FAINT = "#1C1E21", "#6B7280", "#C9CDD3"
COMMON = {"svg.hashsalt": "fedsim", "text.parse_math": False, "svg.fonttype": "path", "axes.unicode_minus": True}
PAPER = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # both come with matplotlib; the first looks like a paper's Times
    "mathtext.fontset": "stix",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.6,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#000000",
    "grid.linewidth": 0.4,
    "grid.color": "#E0E0E0",
    "savefig.dpi": 300,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
SCREEN = {
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class Look:
    """How figures are drawn. width: inches of one with several panels; column: of one with a single panel."""

    name: str
    width: float
    column: float
    ratio: float
    rc: dict[Any, Any] = field(default_factory=dict)

    @property
    def paper(self) -> bool:
        """Whether for a paper, whose captions say what a title would."""
        return self.name == "paper"

    @property
    def font(self) -> float:
        """Size of letters in points."""
        return float(self.rc["font.size"])

    @property
    def dot(self) -> float:
        """Area of a point, in square points."""
        return float(1.25 * self.rc["lines.markersize"] ** 2)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Draw like this within the block, whatever a user's matplotlibrc says."""
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(self.rc)
            yield

    def figure(
        self, title: str, panels: int = 1, height: float | None = None, columns: int = 4
    ) -> tuple[Figure, list[Axes]]:
        """A figure with a title (none in a paper) and its panels, at most `columns` side by side; height in inches of a row."""
        from matplotlib.figure import Figure

        across = min(panels, columns)
        rows = -(-panels // across)
        width = self.column if panels == 1 else self.width
        tall = self.ratio * self.column if height is None else height
        figure = Figure(figsize=(width, rows * tall + (0.35 if not self.paper else 0.0)), layout="constrained")
        if title and not self.paper:
            wrapped = textwrap.fill(title, int(width * 9.7))
            figure.suptitle(wrapped, x=0.008, ha="left", fontsize=11.5, fontweight="bold", color=INK)
        made = list(figure.subplots(rows, across, squeeze=False).ravel())
        for empty in made[panels:]:
            empty.set_visible(False)
        return figure, made[:panels]


LOOKS = {
    "screen": Look("screen", width=8.6, column=7.2, ratio=0.56, rc=STYLE | COMMON | SCREEN),
    "paper": Look("paper", width=7.0, column=3.4, ratio=0.72, rc=STYLE | COMMON | PAPER),
}


class Series(NamedTuple):
    """How one line is told from the others."""

    color: Any
    marker: str
    dash: Any


def series_of(count: int, ordered: bool, look: Look) -> list[Series]:
    """`count` series; ordered: by lightness, from light for the first to dark for the last, else by colour.

    Dashes tell them apart without colour where they are no order of lightness, in a paper always.
    """
    from matplotlib import colormaps

    if ordered:
        shades = colormaps["viridis"](np.linspace(0.80, 0.06, count)) if count > 1 else [CATEGORIES[0]]
        colors: list[Any] = [tuple(float(part) for part in shade) if count > 1 else shade for shade in shades]
    else:
        colors = [CATEGORIES[place % MOST_SERIES] for place in range(count)]
    dashes = [DASHES[place % len(DASHES)] if look.paper else "-" for place in range(count)]
    if ordered:
        dashes.reverse()  # the darkest line is the whole one
    marks = [MARKERS[place % len(MARKERS)] for place in range(count)]
    return [Series(*one) for one in zip(colors, marks, dashes, strict=True)]
