"""The pictures of a run, drawn from its folder: `write_plots(run_dir)` writes plots/*.png.

Each picture is a function from a run to a figure, or to None where the run holds nothing to draw: a missing number is
left out, never drawn as zero.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.audit.pictures import audit_scores, inversion, lira_roc
from fedsim.paths import whole
from fedsim.results.finished import Run, read_run
from fedsim.results.pictures.classes import client_classes
from fedsim.results.pictures.clients import client_accuracy, participation
from fedsim.results.pictures.devices import cost_curves, who_took_part
from fedsim.results.pictures.learning import learning_curve, traffic
from fedsim.results.pictures.movement import data_drift
from fedsim.results.pictures.privacy import privacy
from fedsim.results.pictures.stream import stream, stream_clients
from fedsim.results.pictures.style import drawing, save
from fedsim.results.pictures.timeline import timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWINGS: dict[str, Callable[[Run], Figure | None]] = {
    "learning_curve": learning_curve,
    "stream": stream,
    "stream_clients": stream_clients,
    "data_drift": data_drift,
    "client_accuracy": client_accuracy,
    "client_classes": client_classes,
    "participation": participation,
    "cost_curves": cost_curves,
    "timeline": timeline,
    "who_took_part": who_took_part,
    "traffic": traffic,
    "privacy": privacy,
    "audit_scores": audit_scores,
    "lira_roc": lira_roc,
    "inversion": inversion,
}


def write_plots(run_dir: Path, summary: dict[str, Any] | None = None) -> list[Path]:
    """Draw every picture that the run has numbers for; returns the files written, in the order of the report.

    summary: see `read_run`. A picture of an earlier writing that no longer has numbers is removed.
    """
    run = read_run(run_dir, summary)
    written = []
    with drawing():
        for name, draw in DRAWINGS.items():
            path = run_dir / "plots" / f"{name}.png"
            figure = draw(run)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            with whole(path) as temporary:
                save(figure, temporary)
            written.append(path)
    return written
