"""The cells of the study: each is one fedsim command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedsim.experiment import command_from
from fedsim.results.files import read_json

UNITS = ("example", "user", "distributed", "local")
DATASETS = ("mnist5k", "fashion_mnist")
SIZES: dict[str, tuple[tuple[float, ...], int]] = {"small": ((1.0, 8.0), 1), "full": ((1.0, 2.0, 4.0, 8.0), 3)}
"""Epsilons, and how many seeds."""

COMMON = ("model=linear", "device=cpu", "evaluation.every=10", "checkpoint.every=100")
"""One model, of 7,850 parameters on 28x28 images, so that cells differ by the unit alone."""

EVEN = ("partition=iid", "~partition.alpha")
"""As in the experiments of the other units."""

SETTINGS: dict[tuple[str, str], tuple[str, ...]] = {
    ("example", "fashion_mnist"): (*EVEN, "rounds=10", "client.batch_size=600", "client.lr=2.0"),
    ("example", "mnist5k"): (*EVEN, "rounds=10", "client.batch_size=100", "client.lr=2.0"),
    ("user", "fashion_mnist"): ("rounds=30", "privacy.clip_norm=0.3"),
    ("user", "mnist5k"): ("population.num_clients=1000", "rounds=20"),
    ("distributed", "fashion_mnist"): (),
    ("distributed", "mnist5k"): ("population.num_clients=1000", "sampler.cohort_size=100"),
    ("local", "fashion_mnist"): (),
    ("local", "mnist5k"): ("population.num_clients=1000", "sampler.cohort_size=250"),
}
"""What a unit needs on a dataset beside its experiment."""

SMALLER: dict[tuple[str, str], tuple[str, ...]] = {
    ("example", "fashion_mnist"): ("rounds=3",),
    ("user", "fashion_mnist"): ("rounds=5",),
    ("distributed", "fashion_mnist"): ("rounds=4", "sampler.cohort_size=100"),
    ("distributed", "mnist5k"): ("rounds=4",),
}
"""What makes a cell of the small size quicker."""

PROMISES = {
    "example": ("epsilon", "delta", "clip_norm"),
    "user": ("epsilon", "delta", "clip_norm"),
    "distributed": ("epsilon", "delta", "clip_norm", "dropout_tolerance", "max_participations"),
    "local": ("epsilon", "delta", "clip_norm", "max_participations"),
}
"""The privacy keys that a unit's experiment sets, which privacy=none does not have."""


@dataclass(frozen=True)
class Cell:
    """One run. epsilon: None for the same federation without privacy."""

    size: str
    dataset: str
    unit: str
    epsilon: float | None
    seed: int

    @property
    def name(self) -> str:
        """Its folder. The sizes share none, since a cell that was run by another command is run anew in its folder."""
        promise = "none" if self.epsilon is None else f"epsilon{self.epsilon:g}"
        small = "small_" if self.size == "small" else ""
        return f"{small}{self.dataset}_{self.unit}_{promise}_seed{self.seed}"

    @property
    def overrides(self) -> list[str]:
        """What follows `python -m fedsim`."""
        if self.epsilon is None:
            promise = ["privacy=none", *(f"~privacy.{key}" for key in PROMISES[self.unit])]
        else:
            promise = [f"privacy.epsilon={self.epsilon:g}"]
        place = (self.unit, self.dataset)
        smaller = SMALLER.get(place, ()) if self.size == "small" else ()
        # a clipping norm that a study sets is a promise's, and goes with it
        own = [
            *COMMON,
            *(one for one in SETTINGS[place] if self.epsilon is not None or "privacy." not in one),
            *smaller,
        ]
        return [f"+experiment={self.unit}_dp", f"dataset={self.dataset}", *own, *promise, f"seed={self.seed}"]

    @property
    def command(self) -> str:
        """The command, as a run's summary repeats it."""
        return command_from(self.overrides)

    def finished(self, runs: Path) -> dict | None:
        """The summary of the run of this very command, if it was finished."""
        path = runs / self.name / "summary.json"
        if not path.is_file():
            return None
        summary = read_json(path, f"{path.parent}: delete it, and run the study again;")
        return summary if summary.get("command") == self.command else None


def cells(size: str) -> list[Cell]:
    """All cells of a size: of one dataset after another a whole seed at a time; stopped, a study has fewer seeds and few holes."""
    epsilons, seeds = SIZES[size]
    return [
        Cell(size, dataset, unit, epsilon, seed)
        for dataset in DATASETS
        for seed in range(seeds)
        for unit in UNITS
        for epsilon in (*epsilons, None)
    ]
