"""What a tuner gets of a run: `objectives=accuracy` or `objectives=[accuracy,bytes_up]`, numbers of its summary."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig, ListConfig

from fedsim.checks import did_you_mean, require_choice
from fedsim.types import FedsimError

NUMBERS = (
    *("accuracy", "loss", "best_accuracy", "macro_f1", "ece", "epsilon", "noise_multiplier", "rounds"),
    *("bytes_up", "bytes_down", "seconds", "train_seconds", "client_rounds_per_second", "peak_memory_mb"),
    *("simulated_seconds", "joules", "num_parameters"),
    *("federated.accuracy_mean", "federated.accuracy_std", "federated.accuracy_worst10", "federated.accuracy_best10"),
    "federated.loss_mean",
)
"""Keys of summary.json that can be an objective."""


def chosen_objectives(cfg: DictConfig) -> list[str]:
    """What `objectives` names. Raises FedsimError for what is no number of a run."""
    value = cfg.get("objectives")
    names = list(value) if isinstance(value, ListConfig) else [] if value is None else [value]
    return [require_choice("objectives", name, NUMBERS) for name in names]


def values_of(summary: dict[str, Any], names: list[str]) -> float | tuple[float, ...]:
    """One number, or several in order. Raises FedsimError where the run has no such number."""
    values = tuple(_value(summary, name) for name in names)
    return values[0] if len(values) == 1 else values


def _value(summary: dict[str, Any], name: str) -> float:
    found: Any = summary
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        close = did_you_mean(name, [other for other in NUMBERS if other != name])
        raise FedsimError(
            f"objectives={name} is no number in this run, which has none{close}; choose another objective"
        )
    return float(found)
