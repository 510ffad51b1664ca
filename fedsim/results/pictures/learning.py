"""What was learned, over rounds and over the bytes that were sent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fedsim.results.finished import Run, tenth_of
from fedsim.results.formats import byte_unit, bytes_text, number_text, percent
from fedsim.results.pictures.style import BLUE, GREY, ORANGE, figure_of, line, round_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCURACIES = {"accuracy": ("test rows", BLUE), "federated_accuracy": ("clients' own rows, mean", ORANGE)}
LOSSES = {
    "loss": ("test rows", BLUE),
    "federated_loss": ("clients' own rows, mean", ORANGE),
    "train_loss": ("training on devices", GREY),
}


def learning_curve(run: Run) -> Figure | None:
    """Accuracy and loss over rounds: the server's test rows, the clients' own rows with a band, and the baselines."""
    draws = [
        draw
        for draw, names in ((_accuracy_panel, ACCURACIES), (_loss_panel, LOSSES))
        if any(len(run.curve(name)[0]) > 1 for name in names)
    ]
    if not draws:
        return None
    figure, panels = figure_of(_learning_title(run), len(draws))
    for draw, axes in zip(draws, panels, strict=True):
        draw(run, axes)
        round_axis(axes)
        axes.legend()
    return figure


def _learning_title(run: Run) -> str:
    for name, best, text in (
        *((name, np.argmax, percent) for name in ACCURACIES),
        ("loss", np.argmin, number_text),
    ):
        rounds, values = run.curve(name)
        if len(values):
            at = int(best(values))
            what = "Loss" if name == "loss" else "Accuracy"
            whose = " on clients' own rows" if name.startswith("federated") else ""
            title = f"{what}{whose} is {text(values[-1])} after round {rounds[-1]:.0f}"
            return (
                title
                if at == len(values) - 1
                else f"{title}; the best was {text(values[at])} at round {rounds[at]:.0f}"
            )
    return "Loss on the devices while they train"


def _accuracy_panel(run: Run, axes: Axes) -> None:
    from matplotlib.ticker import PercentFormatter

    x, worst = run.curve("federated_accuracy_worst10")
    best_x, best = run.curve("federated_accuracy_best10")
    if len(x) and np.array_equal(x, best_x):
        axes.fill_between(x, worst, best, color=ORANGE, alpha=0.16, lw=0, label=_band_label(run))
    for name, (label, color) in ACCURACIES.items():
        line(axes, *run.curve(name), label, color)
    for name, label, style in (("central", "all data in one place", "--"), ("local_only", "each device alone", ":")):
        value = (run.summary.get("baselines") or {}).get(name, {}).get("accuracy")
        if value is not None and math.isfinite(value):
            axes.axhline(value, color="black", lw=1, ls=style, label=label)
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _band_label(run: Run) -> str:
    clients = (run.summary.get("federated") or {}).get("num_clients") or len(run.users)
    return "worst to best client" if tenth_of(clients) == 1 else "worst 10% to best 10% of clients"


def _loss_panel(run: Run, axes: Axes) -> None:
    for name, (label, color) in LOSSES.items():
        line(axes, *run.curve(name), label, color)
    axes.set_ylabel("loss" if run.summary.get("dataset", {}).get("task") == "regression" else "loss (nats)")
    values = np.concatenate([run.curve(name)[1] for name in LOSSES])
    if values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")


def traffic(run: Run) -> Figure | None:
    """Bytes sent, cumulative: over rounds, and against what they bought in accuracy (loss, for regression)."""
    up, down = (run.rounds.get(name, np.array([np.nan])) for name in ("bytes_up", "bytes_down"))
    if len(up) < 2 or not (np.isfinite(up).all() and np.isfinite(down).all()) or (up + down).sum() == 0:
        return None
    total = np.cumsum(up + down)
    divisor, unit = byte_unit(total[-1])
    name = next((name for name in ("accuracy", "federated_accuracy", "loss") if len(run.curve(name)[0])), None)
    title = f"{bytes_text(total[-1])} were sent: {bytes_text(up.sum())} up, {bytes_text(down.sum())} down"
    figure, panels = figure_of(title + _bought(run, name, total), 2 if name else 1)
    rounds = run.rounds["round"]
    panels[0].plot(rounds, np.cumsum(down) / divisor, color=BLUE, label="down, server to devices")
    panels[0].plot(rounds, np.cumsum(up) / divisor, color=ORANGE, ls=(0, (4, 2)), label="up, devices to server")
    panels[0].set_ylabel(f"sent so far, all clients ({unit})")
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    round_axis(panels[0])
    if name:
        _bought_panel(panels[1], run, name, total / divisor, unit)
    return figure


def _bought(run: Run, name: str | None, total: np.ndarray) -> str:
    if name is None or name == "loss":
        return ""
    rounds, values = run.curve(name)
    enough = rounds[np.argmax(values >= 0.95 * values.max())]
    spent = total[np.searchsorted(run.rounds["round"], enough)]
    if len(values) < 5 or spent > 0.8 * total[-1]:
        return ""
    return f"; {percent(spent / total[-1])} of that bought 95% of the best accuracy"


def _bought_panel(axes: Axes, run: Run, name: str, total: np.ndarray, unit: str) -> None:
    from matplotlib.ticker import PercentFormatter

    rounds, values = run.curve(name)
    label, color = {**LOSSES, **ACCURACIES}[name]
    line(axes, total[np.searchsorted(run.rounds["round"], rounds)], values, label, color)
    axes.set_xlabel(f"sent so far, up and down, all clients ({unit})")
    axes.set_xlim(left=0)
    axes.set_ylabel(f"{'loss' if name == 'loss' else 'accuracy'}, {label}")
    if name != "loss":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
