"""All figures of a study as files: figures/NAME.png and figures/NAME.svg."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedsim.paths import whole
from fedsim.studies.figures.against import against, by_name
from fedsim.studies.figures.along import ALONG
from fedsim.studies.figures.clients import client_accuracy, client_classes
from fedsim.studies.figures.curves import learning_curves
from fedsim.studies.figures.drifting import prequential_curves
from fedsim.studies.figures.heat import heat_map
from fedsim.studies.figures.pareto import pairs, pareto
from fedsim.studies.figures.style import Look
from fedsim.studies.study import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_AGAINST = 6
FILE_NAMES = {"privacy.epsilon": "epsilon", "population.num_clients": "clients", "partition.alpha": "alpha"}


class Drawing(NamedTuple):
    """name: of its files. section: of the report. alt: what it shows, for those who do not see it."""

    name: str
    section: str
    alt: str
    draw: Callable[[Study, Look], Figure | None]


class Picture(NamedTuple):
    """A figure that was drawn."""

    name: str
    section: str
    alt: str
    png: bytes


def drawings(study: Study) -> Iterator[Drawing]:
    """What may be drawn of the study, in the order of the report."""
    measure = study.measure.label
    for across, up in pairs(study):
        alt = f"Pareto front of {up.label} against {across.label}"
        name = f"pareto_{up.name}_{across.name}"
        yield Drawing(name, "pareto", alt, lambda s, look, x=across, y=up: pareto(s, x, y, look))  # type: ignore[misc]
    for axis in study.numeric[:MOST_AGAINST]:
        name = f"{study.measure.name}_vs_{_file_name(axis.key)}"
        yield Drawing(name, "against", f"{measure} against {axis.label}", partial(_against, key=axis.key))
    for axis in study.categorical[:MOST_AGAINST]:
        name = f"{study.measure.name}_by_{_file_name(axis.key)}"
        yield Drawing(name, "against", f"{measure} of each {axis.label}", partial(_by_name, key=axis.key))
    yield Drawing("heat_map", "against", f"{measure} by two numbers that were varied", heat_map)
    yield Drawing(
        "prequential_curves", "curves", "Accuracy on what comes next over rounds, and drifts", prequential_curves
    )
    yield Drawing("learning_curves", "curves", f"{measure} over rounds", learning_curves)
    for along in ALONG:
        name, alt = f"learning_curves_{along.measure.name}", f"{measure} against {along.measure.label}"
        yield Drawing(name, "curves", alt, partial(learning_curves, along=along))
    yield Drawing("client_accuracy", "clients", "How accuracy spreads over clients in each cell", client_accuracy)
    yield Drawing("client_classes", "classes", "Which client holds how much of which class", client_classes)


def _file_name(key: str) -> str:
    return FILE_NAMES.get(key) or key.removesuffix("._target_").rsplit(".", 1)[-1]


def _against(study: Study, look: Look, key: str) -> Figure | None:
    axis = study.axis(key)
    return against(study, axis, look) if axis else None


def _by_name(study: Study, look: Look, key: str) -> Figure | None:
    axis = study.axis(key)
    return by_name(study, axis, look) if axis else None


def draw_all(study: Study, folder: Path, look: Look) -> list[Picture]:
    """Write every figure that the study has numbers for, and take away those of an earlier report that it has none for."""
    drawn = []
    with look.installed():
        for drawing in drawings(study):
            figure = drawing.draw(study, look)
            if figure is not None:
                drawn.append(Picture(drawing.name, drawing.section, drawing.alt, _save(figure, folder / drawing.name)))
    kept = {picture.name for picture in drawn}
    for path in [*folder.glob("*.png"), *folder.glob("*.svg")]:
        if path.stem not in kept and path.stem.startswith(OURS):
            path.unlink()
    return drawn


OURS = (
    "pareto_",
    "accuracy_vs_",
    "accuracy_by_",
    "loss_vs_",
    "loss_by_",
    "heat_map",
    "learning_curves",
    "client_",
    "prequential_",
)
"""How the names of our figures begin; other files of the folder are left alone."""


def _save(figure: Figure, path: Path) -> bytes:
    """Both files, the same bytes for the same study on the same machine; gives the PNG's."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out now, and need not be for each file again
    with whole(path.with_name(f"{path.name}.svg")) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    png = path.with_name(f"{path.name}.png")
    with whole(png) as temporary:
        figure.savefig(temporary, format="png")
    return png.read_bytes()
