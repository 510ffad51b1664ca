"""Recovery by one yardstick: how many rounds each method takes to be as right as plain FedAvg was before the drift.

A method's recovery to its own level (`streams.recovery_rounds`) asks more of one that was better before.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from fedsim.streams.regret import recoveries
from fedsim.studies.names import target_name

if TYPE_CHECKING:
    import pandas as pd

SHARED = "rounds_to_fedavgs_level"
PLAIN = {"strategy._target_": "fedavg", "response._target_": "NoResponse", "streams.memory": "window"}
"""The run that the others of its drift and seed are held against."""


def with_shared_level(runs: pd.DataFrame, rounds: pd.DataFrame) -> pd.DataFrame:
    """The runs with a column SHARED, of the first drift: NaN where there is none, or no plain FedAvg of the same drift and seed.

    A run that does not get there counts as all the rounds until the next drift, or the end, so that means are then lower bounds.
    """
    accuracy = {run: own.sort_values("round")["round_accuracy"].to_numpy(float) for run, own in rounds.groupby("run")}
    levels = {_place(run): accuracy[run["run"]] for run in runs.to_dict("records") if _plain(run)}
    took = [
        _rounds(accuracy[run["run"]], levels.get(_place(run)), json.loads(run["streams.drift"]))
        for run in runs.to_dict("records")
    ]
    return runs.assign(**{SHARED: took})


def _plain(run: dict[str, str]) -> bool:
    return all(target_name(run[f"config.{key}"]) == value for key, value in PLAIN.items())


def _place(run: dict[str, str]) -> tuple[str, str]:
    return run["config.drift._target_"], run["seed"]


def _rounds(accuracy: np.ndarray, plain: np.ndarray | None, events: list[dict[str, int]]) -> float:
    if plain is None or not events:
        return float("nan")
    drifts = sorted({event["round"] for event in events})
    level = recoveries(plain, drifts)[0].level
    found = recoveries(accuracy, drifts, level=level)[0]
    return float([*drifts, len(accuracy) + 1][1] - drifts[0] if found.rounds is None else found.rounds)
