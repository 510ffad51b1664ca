"""What configuration keys and measures are called, and how their values are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.results.formats import DASH, at_most, byte_unit, bytes_text, duration, known, number_text, percent
from fedsim.results.units import carbon_text, energy_text, gram_unit, joule_unit, second_unit, time_text

LABELS = {
    "name": "experiment",
    "strategy._target_": "strategy",
    "dataset._target_": "dataset",
    "model._target_": "model",
    "partition._target_": "partition",
    "sampler._target_": "sampler",
    "privacy._target_": "privacy unit",
    "population.num_clients": "clients",
    "privacy.epsilon": "ε",
    "privacy.delta": "δ",
    "privacy.noise_multiplier": "noise multiplier",
    "privacy.clip_norm": "clipping norm",
    "partition.alpha": "Dirichlet \N{GREEK SMALL LETTER ALPHA}",
    "sampler.fraction": "share of clients in a round",
    "sampler.cohort_size": "clients in a round",
    "corruption.label_noise": "label noise",
    "client.lr": "learning rate",
    "client.epochs": "local epochs",
    "client.batch_size": "batch size",
    "strategy.server_lr": "server learning rate",
    "strategy.server_momentum": "server momentum",
}
"""Of keys whose last word says too little."""

FIRST = (
    "name",
    "dataset._target_",
    "strategy._target_",
    "model._target_",
    "population.num_clients",
    "partition._target_",
    "partition.alpha",
    "privacy._target_",
    "privacy.mechanism",
    "privacy.epsilon",
    "privacy.noise_multiplier",
    "privacy.clip_norm",
    "sampler._target_",
    "sampler.fraction",
    "sampler.cohort_size",
    "fleet._target_",
    "availability._target_",
    "schedule._target_",
    "compression._target_",
    "rounds",
    "client.lr",
    "client.epochs",
)
"""The order in which axes are looked for and told of; others follow by name."""

WORDY = re.compile(r"(?<=[a-z])(?=[A-Z])|_")
PARTS = ("Privacy", "Sampler", "Audit")


def label_of(key: str) -> str:
    """A configuration key in words: `client.lr` as `learning rate`."""
    return LABELS.get(key) or key.removesuffix("._target_").rsplit(".", 1)[-1].replace("_", " ")


def value_text(value: Any) -> str:
    """A value of a configuration key as a person writes it; the name alone of what a `_target_` names."""
    if missing(value):
        return "none"
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def target_name(target: str) -> str:
    """`fedsim.privacy.UserPrivacy` as `user`, `fedsim.data.sources.watch.load` as `watch`, `my.Net` as `Net`."""
    *modules, name = target.split(".")
    if name == "load" and modules:
        name = modules[-1]
    for part in PARTS:
        if name.endswith(part) and name != part:
            return {"no": "none"}.get(short := name.removesuffix(part).lower(), short)
    return name


def sentence_case(words: str) -> str:
    """The first letter large where it is a Latin one: `test accuracy` as `Test accuracy`, `ε spent` as it is."""
    return words[:1].upper() + words[1:] if words[:1].isascii() else words


def missing(value: Any) -> bool:
    """None, NaN and pandas' NA."""
    return value is None or value != value or str(value) == "<NA>"


@dataclass(frozen=True)
class Measure:
    """What is measured of a run.

    name: column of the runs. label: of an axis. short: in a table's heading. higher: whether more is better, None where that
    is no question. show: a value in words.
    """

    name: str
    label: str
    short: str
    higher: bool | None
    show: Callable[[Any], str]

    @property
    def is_share(self) -> bool:
        """Whether it is written in per cent."""
        return self.show is percent

    def difference(self, value: Any, sign: bool = True) -> str:
        """A difference in words: `+2.1 points`."""
        if not known(value):
            return DASH
        plus = "+" if sign and value >= 0 else "\N{MINUS SIGN}" if value < 0 and sign else ""
        size = abs(value) if sign else value
        return f"{plus}{100 * size:.1f} points" if self.is_share else f"{plus}{self.show(size)}"


def _epsilon(value: Any) -> str:
    return at_most(value)


def unit_of(measure: Measure, largest: float) -> tuple[float, str]:
    """The unit of an axis whose largest value is this: its size and its name, 1 and none where a measure has no unit."""
    return UNITS[measure.name](largest) if measure.name in UNITS else (1.0, "")


UNITS: dict[str, Callable[[float], tuple[float, str]]] = {
    "bytes": byte_unit,
    "simulated_seconds": second_unit,
    "joules": joule_unit,
    "grams_co2": gram_unit,
    "seconds": second_unit,
}


MEASURES = (
    Measure("accuracy", "test accuracy", "Accuracy", True, percent),
    Measure("loss", "test loss", "Loss", False, number_text),
    Measure("prequential_accuracy", "accuracy on what comes next", "On what comes next", True, percent),
    Measure("cumulative_accuracy", "accuracy on all that came", "On all that came", True, percent),
    Measure("streams.recovery_rounds", "rounds to recover from a drift", "Rounds to recover", False, number_text),
    Measure("streams.regret_fixed_each", "regret an example, best fixed model", "Regret, fixed", False, number_text),
    Measure("streams.regret_offline_each", "regret an example, offline model", "Regret, offline", False, number_text),
    Measure("streams.forgetting", "accuracy forgotten of old concepts", "Forgotten", False, percent),
    Measure("streams.clients_worst10", "worst 10% of clients on what comes next", "Worst 10%, next", True, percent),
    Measure("macro_f1", "macro F1", "Macro F1", True, percent),
    Measure("federated.accuracy_mean", "clients' mean accuracy", "Clients' mean", True, percent),
    Measure("federated.accuracy_std", "standard deviation over clients", "Std over clients", False, percent),
    Measure("federated.accuracy_worst10", "worst 10% of clients", "Worst 10%", True, percent),
    Measure("epsilon", "ε spent", "ε spent", False, _epsilon),
    Measure("bytes", "bytes sent", "Sent", False, bytes_text),
    Measure("simulated_seconds", "simulated time", "Simulated time", False, time_text),
    Measure("joules", "energy of devices", "Energy", False, energy_text),
    Measure("grams_co2", "carbon of devices", "Carbon", False, carbon_text),
    Measure("seconds", "time to simulate", "Time to simulate", None, duration),
)
BY_NAME = {measure.name: measure for measure in MEASURES}
TRADED = ("accuracy", "epsilon", "bytes", "simulated_seconds", "joules")
"""Measures that a Pareto front weighs against each other."""
