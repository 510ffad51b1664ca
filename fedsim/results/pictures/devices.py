"""What a run would have cost in the field, and who took part in it: pictures of runs whose devices were modelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.results.devices import CAUSES, Devices, devices_of
from fedsim.results.finished import Run
from fedsim.results.formats import byte_unit, bytes_text, known, number_text, percent
from fedsim.results.pictures.classes import class_names
from fedsim.results.pictures.learning import ACCURACIES, LOSSES
from fedsim.results.pictures.style import BLUE, GREY, ORANGE, figure_of, line
from fedsim.results.units import energy_text, joule_unit, second_unit, time_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKED_ROUNDS = 5
MOST_CLASSES = 20
MOST_POINTS = 400
LEFT_OUT = {"model does not fit": ORANGE, "drawn, never used": "#E69F00", "never drawn": "#C9CDD3"}


class Cost(NamedTuple):
    """columns: of rounds.parquet, whose sum is the cost of a round. name: of the axis."""

    columns: tuple[str, ...]
    name: str
    unit_of: Callable[[float], tuple[float, str]]
    show: Callable[[Any], str]


COSTS = (
    Cost(("simulated_seconds",), "simulated time", second_unit, time_text),
    Cost(("bytes_up", "bytes_down"), "sent, up and down", byte_unit, bytes_text),
    Cost(("joules",), "energy of all devices", joule_unit, energy_text),
)


def cost_curves(run: Run) -> Figure | None:
    """Accuracy (loss, for regression) against what devices had spent by then: time, bytes, energy."""
    spent = [(cost, total) for cost in COSTS if (total := _spent(run, cost)) is not None]
    name = next((name for name in ("accuracy", "federated_accuracy", "loss") if len(run.curve(name)[0]) > 1), None)
    if name is None or all(cost.unit_of is byte_unit for cost, _ in spent):
        return None  # bytes alone are drawn by `learning.traffic`
    rounds, values = run.curve(name)
    at = np.searchsorted(run.rounds["round"], rounds)
    figure, panels = figure_of(_cost_title(name, values, [(cost, total[at]) for cost, total in spent]), len(spent))
    for number, (axes, (cost, total)) in enumerate(zip(panels, spent, strict=True)):
        divisor, unit = cost.unit_of(total[-1])
        _cost_panel(axes, total[at] / divisor, values, rounds, name)
        axes.set_xlabel(f"{cost.name} ({unit})")
        if number:
            axes.sharey(panels[0])
            axes.tick_params(axis="y", labelleft=False, length=0)
            axes.set_ylabel("")
    return figure


def _spent(run: Run, cost: Cost) -> np.ndarray | None:
    """(rounds,) what was spent up to the end of each round; None where it is not known of all, or nothing was."""
    columns = [run.rounds.get(name, np.array([np.nan])) for name in cost.columns]
    total = np.cumsum(np.sum(columns, axis=0))
    return total if np.isfinite(total).all() and total[-1] > 0 else None


def _cost_title(name: str, values: np.ndarray, spent: list[tuple[Cost, np.ndarray]]) -> str:
    *others, last = [cost.show(float(total[-1])) for cost, total in spent]
    price = f"{', '.join(others)} and {last}" if others else last
    if name == "loss":
        return f"A loss of {number_text(values[-1])} took {price}"
    title = f"{percent(values[-1])} accuracy took {price}"
    enough = int(np.argmax(values >= 0.95 * values.max()))
    cost, total = spent[0]
    return f"{title}; 95% of the best was there after {cost.show(float(total[enough]))}"


def _cost_panel(axes: Axes, x: np.ndarray, y: np.ndarray, rounds: np.ndarray, name: str) -> None:
    """The curve, with a few of its rounds marked."""
    from matplotlib.ticker import PercentFormatter

    label, color = {**LOSSES, **ACCURACIES}[name]
    line(axes, x, y, label, color)
    marked = np.unique(np.linspace(0, len(x) - 1, MARKED_ROUNDS + 1).astype(int)[1:])
    axes.plot(x[marked], y[marked], "o", color=color, ms=6, mec="white", mew=1.0)
    up = 1 if name == "loss" else -1
    for place in marked:
        first, last = place == marked[0], place == len(x) - 1  # the first is where the curve is steep
        style: dict[str, Any] = {
            "fontsize": 7,
            "color": "#444444",
            "ha": "right" if last else "left" if first else "center",
        }
        words = f"{'round ' if first else ''}{rounds[place]:.0f}"
        offset = (7 if first and not last else 0, (4 if first and not last else 11) * up)
        axes.annotate(words, (x[place], y[place]), offset, textcoords="offset points", va="center", **style)
    axes.set_xlim(left=0)
    axes.margins(y=0.1)
    axes.set_ylabel(f"{'loss' if name == 'loss' else 'accuracy'}, {label}")
    if name != "loss":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def who_took_part(run: Run) -> Figure | None:
    """Whose data train the model: participation against data, who never could, with which classes, and why work was lost."""
    devices = devices_of(run)
    if devices is None or devices.participations.sum() == 0 or devices.examples.sum() == 0:
        return None
    lost = _lost(run)
    draws: list[Callable[[Axes], None]] = [lambda axes: _inequality_panel(axes, devices)]
    if len(devices.kinds) > 1:
        draws.insert(0, lambda axes: _kinds_panel(axes, devices))
    if len(lost) > 1:  # of one the report's sentence says as much
        draws.append(lambda axes: _causes_panel(axes, lost))
    if (devices.unfit | devices.idle).any():
        draws.append(lambda axes: _left_out_panel(axes, devices))
    shares = devices.class_shares(run, devices.unfit) if devices.unfit.any() else None
    if shares is not None:
        draws.append(lambda axes: _classes_panel(axes, run, devices, shares))
    figure, panels = _panels(_took_part_title(devices), len(draws))
    for draw, axes in zip(draws, panels, strict=True):
        draw(axes)
    return figure


def _panels(title: str, count: int) -> tuple[Figure, list[Axes]]:
    """Up to three panels in a row; more in two rows, of which the first holds as many as the second or one more."""
    if count <= 3:
        return figure_of(title, count)
    figure, (axes,) = figure_of(title, 1, height=5.8)
    axes.remove()
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    first = -(-count // 2)
    return figure, [*above.subplots(1, first), *below.subplots(1, count - first)]


def _took_part_title(devices: Devices) -> str:
    took = devices.participations > 0
    share = percent(devices.share(took, devices.examples))
    title = f"{took.sum():,} of {len(took):,} clients, with {share} of the examples, trained the model"
    return f"{title}; on {devices.unfit.sum():,} it does not fit" if devices.unfit.any() else title


def _share_axis(axes: Axes, which: str = "x") -> None:
    from matplotlib.ticker import PercentFormatter

    getattr(axes, f"{which}axis").set_major_formatter(PercentFormatter(1.0, decimals=0))


def _name_rows(axes: Axes, names: list[str]) -> None:
    """Rows of bars, the first on top."""
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _legend_above(axes: Axes) -> None:
    """Names in a row above the panel, where they hide nothing."""
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderpad": 0}
    axes.legend(ncols=3, handlelength=1.2, columnspacing=1.0, handletextpad=0.5, **place)


def _kinds_panel(axes: Axes, devices: Devices) -> None:
    """Shares of each kind of device in clients, examples and participations."""
    bars = (
        ("clients", np.ones(len(devices.kind)), "#C9CDD3"),
        ("examples", devices.examples, BLUE),
        ("participations", devices.participations, ORANGE),
    )
    for place, (name, of, color) in enumerate(bars):
        shares = [devices.share(devices.kind == kind, of) for kind in range(len(devices.kinds))]
        axes.barh(np.arange(len(shares)) + 0.26 * (place - 1), shares, height=0.24, color=color, label=name)
    _name_rows(axes, devices.kinds)
    _share_axis(axes)
    axes.set_xlabel("share of each kind of device in all")
    _legend_above(axes)


def _inequality_panel(axes: Axes, devices: Devices) -> None:
    """Lorenz's curve of participations over examples: the diagonal is a run in which every example counts alike."""
    held = devices.examples > 0
    examples, took = devices.examples[held], devices.participations[held]
    order = np.argsort(took / examples, kind="stable")
    x, y = (np.concatenate([[0.0], np.cumsum(one[order]) / one.sum()]) for one in (examples, took))
    gini = 1 - float(((x[1:] - x[:-1]) * (y[1:] + y[:-1])).sum())
    if len(x) > MOST_POINTS:
        shown = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).astype(int))
        x, y = x[shown], y[shown]
    axes.plot([0, 1], [0, 1], color="black", lw=1, ls="--", label="in proportion")
    axes.fill_between(x, x, y, color=BLUE, alpha=0.12, lw=0)
    axes.plot(x, y, color=BLUE, label=f"this run, Gini {gini:.2f}")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for which in "xy":
        _share_axis(axes, which)
    axes.set_xlabel("share of examples, least used first")
    axes.set_ylabel("share of participations")
    axes.legend(loc="upper left", handlelength=1.2, handletextpad=0.5, borderaxespad=0.1)


def _left_out_panel(axes: Axes, devices: Devices) -> None:
    """Of each kind's examples, those of clients that never trained the model, by why."""
    tried = devices.dropouts > 0
    groups = (devices.unfit & (devices.participations == 0), devices.idle & tried, devices.idle & ~tried)
    kinds = [devices.kind == kind for kind in range(len(devices.kinds))]
    before = np.zeros(len(kinds))
    for who, (name, color) in zip(groups, LEFT_OUT.items(), strict=True):
        shares = np.array([devices.share(who & mine, np.where(mine, devices.examples, 0.0)) for mine in kinds])
        if who.any():
            axes.barh(range(len(kinds)), shares, left=before, height=0.62, color=color, label=name)
        before += np.nan_to_num(shares)
    _name_rows(axes, [f"{name}\n({mine.sum():,} clients)" for name, mine in zip(devices.kinds, kinds, strict=True)])
    axes.set_xlim(0, min(max(1.15 * before.max(), 0.05), 1.0))
    _share_axis(axes)
    axes.set_xlabel("share of the kind's examples")
    _legend_above(axes)


def _classes_panel(axes: Axes, run: Run, devices: Devices, shares: np.ndarray) -> None:
    """Of each class, the share held where the model does not fit; of many classes those that lose most."""
    names = class_names(run)
    order = np.arange(len(shares))
    if len(shares) > MOST_CLASSES:
        order = np.argsort(-np.nan_to_num(shares), kind="stable")[:MOST_CLASSES]
    overall = devices.share(devices.unfit, devices.examples)
    axes.bar(range(len(order)), shares[order], color=ORANGE, width=0.75)
    axes.axhline(overall, color="black", lw=1, ls="--", label=f"of all examples: {percent(overall)}")
    axes.set_xticks(range(len(order)), [names[label] for label in order], parse_math=False, fontsize=7)
    if max(len(names[label]) for label in order) * len(order) > 40:
        axes.tick_params(axis="x", labelrotation=60)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, max(1.25 * np.nanmax([*shares, overall]), 0.05))
    _share_axis(axes, "y")
    axes.set_xlabel(
        "class" if len(order) == len(shares) else f"class, the {len(order)} of {len(shares)} that lose most"
    )
    axes.set_ylabel("held where the model does not fit")
    axes.legend(loc="upper right")


def _lost(run: Run) -> dict[str, float]:
    """How often work was not used, by cause; empty where nothing was lost or causes were not counted."""
    counted = (run.summary.get("fleet") or {}).get("dropouts") or {}
    return {cause: counted[cause] for cause in CAUSES if known(counted.get(cause)) and counted[cause] > 0}


def _causes_panel(axes: Axes, lost: dict[str, float]) -> None:
    causes = sorted(lost, key=lambda cause: -lost[cause])
    axes.barh(range(len(causes)), [lost[cause] for cause in causes], height=0.62, color=GREY)
    for place, cause in enumerate(causes):
        axes.annotate(
            f"{lost[cause]:,.0f}", (lost[cause], place), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    _name_rows(axes, [CAUSES[cause] for cause in causes])
    axes.set_xlim(0, 1.15 * max(lost.values()))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("times not used, by cause")
