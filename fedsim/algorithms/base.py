"""What a federated algorithm is: a Flower strategy on the server, and what it changes on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

from flwr.serverapp.strategy import Strategy

from fedsim.training import ClientHalf
from fedsim.types import FedsimError

TAKE_ALL_SHOWN: dict[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 0,
    "min_evaluate_nodes": 0,
    "min_available_nodes": 0,
}
"""fedsim samples the cohort and shows a strategy that cohort alone: it takes all that it is shown and waits for no one."""


class Algorithm(NamedTuple):
    """Both halves of an algorithm.

    linear: the aggregate depends on the replies only through their weighted mean, so a chunk of clients may send one
    mean. pools_data: there is one client that holds everybody's data (the central baseline). shares_model: False where
    every client keeps a model of its own. min_cohort: fewer replies than this cannot be aggregated. steps_buffers:
    the server's optimiser moves buffers as if they were weights, which a running variance does not bear. one_vector: False
    where a client sends numbers of its own beside the update, which no privacy mechanism covers.
    """

    strategy: Strategy
    client: ClientHalf = ClientHalf()
    linear: bool = False
    pools_data: bool = False
    shares_model: bool = True
    min_cohort: int = 1
    steps_buffers: bool = False
    one_vector: bool = True


def as_algorithm(part: object) -> Algorithm:
    """An Algorithm as it is; a plain Flower strategy with FedAvg's client half, linear only if it says so (`linear = True`)."""
    if isinstance(part, Algorithm):
        return part
    if not isinstance(part, Strategy):
        raise FedsimError(
            f"strategy._target_ gives a {type(part).__name__}; give a flwr.serverapp.strategy.Strategy "
            "or a fedsim.algorithms.Algorithm"
        )
    for name, value in TAKE_ALL_SHOWN.items():
        if hasattr(part, name):
            setattr(part, name, value)
    return Algorithm(part, linear=bool(getattr(part, "linear", False)))
