"""What forgetting changed: each model on the test rows and on the forgotten rows, in numbers, a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from fedsim.data.population import Population
from fedsim.paths import whole
from fedsim.results.formats import DASH, count_text, duration, known, number_text, percent
from fedsim.results.membership import loss_attack
from fedsim.results.pictures.style import BLUE, GREY, ORANGE, STYLE, figure_of
from fedsim.training.arrays import load_arrays
from fedsim.training.evaluation import Predictions, finite_or_none, metrics_of, predict
from fedsim.types import ClientData, Params

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

COLORS = {"original": GREY, "exact": BLUE, "approximate": ORANGE}
Judged = dict[str, Any]
"""Of one model: accuracy, loss (test rows), forgotten_accuracy, forgotten_loss, membership (an Attack as a dict), and its
cost: client_rounds, seconds."""


def judge(model: nn.Module, arrays: Params, population: Population, forgotten: ClientData, batch_size: int) -> Judged:
    """One model on the test rows and on the forgotten clients' training rows, and whether its loss tells these apart.

    Test rows are nobody's, but they are not drawn as a client's rows are: where a client differs from the rest, a model that
    never saw it differs on it too, and the exact model's figure, not 0.5, is what forgetting should come to.
    """
    load_arrays(model, arrays)
    dataset = population.dataset
    test = predict(model, dataset.test.x, dataset.test.y, dataset.task, batch_size, population.preprocess)
    own = predict(model, forgotten.x, forgotten.y, dataset.task, batch_size)
    on_test, on_own = (metrics_of(found, dataset.num_outputs) for found in (test, own))
    return {
        "accuracy": on_test["accuracy"],
        "loss": on_test["loss"],
        "forgotten_accuracy": on_own["accuracy"],
        "forgotten_loss": on_own["loss"],
        "membership": loss_attack(example_losses(own), example_losses(test))._asdict(),
    }


def example_losses(found: Predictions) -> np.ndarray:
    """(examples,) mean loss over each example's targets; an example without a target is left out."""
    row, loss = found.row.numpy(), found.loss.double().numpy()
    count = np.bincount(row)
    return (np.bincount(row, weights=loss)[count > 0]) / count[count > 0]


def gap(left: Params, right: Params) -> float | None:
    """L2 distance of two models' floating arrays as one vector."""
    names = [name for name, array in left.items() if array.is_floating_point()]
    return finite_or_none(sum(float((left[n].double() - right[n].double()).square().sum()) for n in names) ** 0.5)


def table(models: dict[str, Judged], examples: int) -> Table:
    """A column a model."""
    from rich.table import Table

    made = Table("", *models, show_edge=False)
    for column in made.columns[1:]:
        column.justify = "right"
    labels = next(iter(models.values()))["accuracy"] is not None
    rows = [
        ("accuracy, test", lambda m: percent(m["accuracy"])) if labels else None,
        ("loss, test", lambda m: number_text(m["loss"])),
        ("accuracy, forgotten", lambda m: percent(m["forgotten_accuracy"])) if labels else None,
        ("loss, forgotten", lambda m: number_text(m["forgotten_loss"])),
        ("membership AUC", lambda m: _auc(m["membership"])),
        ("distance from exact", lambda m: number_text(m["distance_from_exact"])) if "exact" in models else None,
        ("client-rounds", lambda m: count_text(m["client_rounds"])),
        ("time", lambda m: duration(m["seconds"])),
    ]
    for name, shown in filter(None, rows):
        made.add_row(name, *(shown(model) for model in models.values()))
    made.caption = (
        f"{examples:,} examples are forgotten; membership inference thresholds the loss, with its 95% interval"
    )
    return made


def _auc(attack: dict[str, Any]) -> str:
    return f"{attack['auc']:.3f} ({attack['low']:.3f}{DASH}{attack['high']:.3f})"


def draw(path: Path, models: dict[str, Judged], title: str) -> None:
    """The picture: what each model still does on test rows and on forgotten rows, what an attack finds, what it cost."""
    import matplotlib

    labels = next(iter(models.values()))["accuracy"] is not None
    metric = "accuracy" if labels else "loss"
    panels: Sequence[tuple[str, list[Any]]] = (
        (f"{metric}, test rows", [m[metric] for m in models.values()]),
        (f"{metric}, forgotten rows", [m[f"forgotten_{metric}"] for m in models.values()]),
        ("membership inference, AUC", [m["membership"]["auc"] for m in models.values()]),
        ("client-rounds trained", [m["client_rounds"] for m in models.values()]),
    )
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure, axes = figure_of(title, len(panels), height=2.9)
        for one, (name, values) in zip(axes, panels, strict=True):
            _bars(one, name, list(models), values)
        _intervals(axes[2], [m["membership"] for m in models.values()])
        if labels:
            for one in axes[:2]:
                one.set_ylim(0, 1.08)
        with whole(path) as temporary:
            figure.savefig(temporary, format="png")


def _bars(axes: Axes, name: str, models: list[str], values: list[Any]) -> None:
    """A bar a model with its number above it; none where there is no number."""
    axes.set_title(name)
    axes.grid(axis="x", visible=False)
    axes.set_xticks(range(len(models)), models, rotation=20)
    axes.set_xlim(-0.6, len(models) - 0.4)
    for position, (model, value) in enumerate(zip(models, values, strict=True)):
        if known(value):
            axes.bar(position, value, color=COLORS[model], width=0.62)
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
            axes.annotate(shown, (position, value), (0, 2), textcoords="offset points", ha="center", va="bottom")
    axes.margins(y=0.12)


def _intervals(axes: Axes, attacks: list[dict[str, Any]]) -> None:
    """The attack's 95% intervals, and where guessing lies."""
    axes.axhline(0.5, color="#333333", lw=0.8, ls="--", zorder=0.5)
    axes.set_ylim(0, 1.08)
    for text in axes.texts:
        text.remove()
    for position, attack in enumerate(attacks):
        error = [[attack["auc"] - attack["low"]], [attack["high"] - attack["auc"]]]
        axes.errorbar(position, attack["auc"], yerr=error, color="#333333", lw=1.0, capsize=3)
        top = (position, attack["high"])
        axes.annotate(f"{attack['auc']:.3f}", top, (0, 2), textcoords="offset points", ha="center", va="bottom")
