"""The pictures of an audit, from what audit.json holds: each gives a figure, or None where there is nothing to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.audit.verdict import shown
from fedsim.results.files import read_json
from fedsim.results.finished import Run
from fedsim.results.formats import percent
from fedsim.results.pictures.style import BLUE, GREY, ORANGE, figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST_RATE = 1e-3
"""Left end of a ROC curve on log axes, where there are examples enough to know it."""


def audit_of(run: Run) -> dict[str, Any]:
    """What audit.json holds; empty where the run was not audited."""
    path = run.folder / "audit.json"
    return read_json(path, "the audit") if path.is_file() else {}


def audit_scores(run: Run) -> Figure | None:
    """How canaries that were in and canaries that were out scored, over the run and in single releases."""
    return draw_scores(audit_of(run))


def lira_roc(run: Run) -> Figure | None:
    """How well training examples are told from others, on log axes."""
    return draw_roc(audit_of(run))


def inversion(run: Run) -> Figure | None:
    """What one client's update gives away of its images."""
    return draw_inversion(audit_of(run))


def draw_scores(audit: dict[str, Any]) -> Figure | None:
    """See audit_scores."""
    bars = audit.get("plot") or {}
    panels = [
        (draw, bars[name])
        for name, draw in (("run", _run_panel), ("release", _release_panel), ("cosine", _cosine_panel))
        if bars.get(name)
    ]
    if not panels:
        return None
    figure, axes = figure_of(_title(audit), len(panels))
    for (draw, data), one in zip(panels, axes, strict=True):
        draw(one, data, audit)
    return figure


def _title(audit: dict[str, Any]) -> str:
    claimed = "no ε was claimed" if audit.get("claimed") is None else f"claimed at most ε = {shown(audit['claimed'])}"
    if audit["kind"] == "one_shot":
        return f"{claimed[0].upper()}{claimed[1:]}; estimated, not bounded: {_epsilon(audit.get('observed'))}"
    sure = f"{100 * audit['confidence']:.3g}%"
    return f"{audit['verdict']}: {claimed}, observed at least {_epsilon(audit.get('observed'))} ({sure})"


def _epsilon(value: float | None) -> str:
    return "infinity" if value is None else shown(value)


def _bars(axes: Axes, data: dict[str, Any], names: tuple[str, str], kind: str) -> None:
    edges = np.array(data["edges"])
    for key, color, label in (("out", GREY, names[1]), ("in", ORANGE, names[0])):
        counts = np.array(data[key])
        share = counts / max(counts.sum(), 1)
        axes.stairs(share, edges, fill=True, color=color, alpha=0.45)
        axes.stairs(share, edges, color=color, lw=1.2, label=f"{label} ({counts.sum():,.0f})")
    axes.set_ylabel(f"share of {kind}")
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper right")


def _run_panel(axes: Axes, data: dict[str, Any], audit: dict[str, Any]) -> None:
    _bars(axes, data, ("in the run", "out of it"), "canaries")
    axes.set_xlabel("score over the whole run (clipping norms)")


def _release_panel(axes: Axes, data: dict[str, Any], audit: dict[str, Any]) -> None:
    _bars(axes, data, ("canary took part", "did not"), "releases")
    bound = (audit.get("bounds") or {}).get("gaussian") or {}
    limit = bound.get("noise_multiplier_at_most")
    noise = f"; z ≤ {shown(limit)}" if limit is not None else ""
    axes.set_xlabel(f"score in a single release (clipping norms{noise})")


def _cosine_panel(axes: Axes, data: dict[str, Any], audit: dict[str, Any]) -> None:
    _bars(axes, data, ("canaries", "directions that took no part"), "directions")
    axes.set_xlabel("cosine with the model's movement")


def draw_roc(audit: dict[str, Any]) -> Figure | None:
    """See lira_roc."""
    roc = audit.get("roc")
    if not roc:
        return None
    title = (
        f"At 0.1% false alarms {percent(roc['tpr_at_0.1%'])} of training examples are found, at 1% {percent(roc['tpr_at_1%'])} "
        f"(AUC {roc['auc']:.3f})"
    )
    figure, (axes,) = figure_of(title, 1, height=4.2)
    lowest = max(LOWEST_RATE, 0.5 / max(roc["others"], 1))
    fpr, tpr = np.maximum(roc["fpr"], lowest), np.maximum(roc["tpr"], lowest)
    axes.plot(fpr, tpr, color=BLUE, label=f"LiRA, {audit['shadows']} shadow models")
    ends = np.array([lowest, 1.0])
    axes.plot(ends, ends, color="black", lw=1, ls="--", label="guessing")
    limit = audit.get("limit")
    if limit:
        axes.plot(limit["fpr"], limit["tpr"], color=ORANGE, ls=":", label=limit["label"])
    axes.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.05))
    axes.set_xlabel(f"false alarms, of {roc['others']:,} examples that nobody trained on")
    axes.set_ylabel(f"found, of {roc['members']:,} training examples")
    axes.set_aspect("equal")
    axes.legend(loc="lower right")
    return figure


def draw_inversion(audit: dict[str, Any]) -> Figure | None:
    """See inversion."""
    from matplotlib.figure import Figure

    images = audit.get("images")
    if not images:
        return None
    rows = [("held by\nthe client", images["originals"], None)]
    rows += [
        (f"from its update,\n{label}", images[key], audit["psnr"][key])
        for key, label in (("plain", "without DP"), ("private", "with DP"))
        if key in images
    ]
    columns = len(images["originals"])
    figure = Figure(figsize=(8.0, 0.6 + 1.45 * len(rows)), layout="constrained")
    figure.suptitle(_inversion_title(audit), x=0.008, ha="left", fontsize=10.5, fontweight="bold")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, pictures, quality) in zip(grid, rows, strict=True):
        for number, (axes, picture) in enumerate(zip(line, pictures, strict=True)):
            image = np.array(picture)
            axes.imshow(image, cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(False)
            if quality is not None:
                axes.set_xlabel(f"{quality[number]:.1f} dB")
        line[0].set_ylabel(label)
    return figure


def _inversion_title(audit: dict[str, Any]) -> str:
    means = {key: float(np.mean(values)) for key, values in audit["psnr"].items()}
    title = f"One update gives its images away at {means['plain']:.1f} dB"
    return title + (f", under the run's privacy at {means['private']:.1f} dB" if "private" in means else "") + " (PSNR)"
