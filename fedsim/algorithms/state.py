"""What a strategy remembers between rounds, as plain arrays and numbers: a checkpoint holds nothing that runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedsim.types import FedsimError

State = dict[str, Any]
"""`{attribute: [kind, value]}` with values of numbers, strings, numpy arrays, and lists and dicts of them."""


def strategy_state(strategy: Strategy) -> State:
    """Every attribute that holds numbers or arrays (the moments of FedAdam, the momentum of FedAvgM, your own).

    A strategy with `state_dict()` and `load_state_dict()` decides for itself. Functions are configuration, not state.
    Raises FedsimError for an attribute that is neither, since a resumed run would silently go on without it.
    """
    own = getattr(strategy, "state_dict", None)
    held = own() if own is not None else vars(strategy)
    return {
        name: pack(f"{type(strategy).__name__}.{name}", value) for name, value in held.items() if not callable(value)
    }


def load_strategy_state(strategy: Strategy, state: State) -> None:
    """Put back what `strategy_state` gave."""
    values = {name: unpack(*packed) for name, packed in state.items()}
    own = getattr(strategy, "load_state_dict", None)
    if own is not None:
        own(values)
    else:
        vars(strategy).update(values)


def pack(where: str, value: Any) -> list[Any]:
    """A value as [kind, value]; `where` names it in the error for what a checkpoint cannot hold."""
    if isinstance(value, ArrayRecord):
        return ["record", {name: array.numpy() for name, array in value.items()}]
    if value is None or isinstance(value, bool | int | float | str):
        return ["plain", value]
    if isinstance(value, np.ndarray | np.generic):
        return ["array", np.array(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return ["dict", {key: pack(where, item) for key, item in value.items()}]
    if isinstance(value, list | tuple):
        return ["list", [pack(where, item) for item in value]]
    raise FedsimError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold; keep numbers and arrays there, "
        "or give the strategy state_dict() and load_state_dict()"
    )


def unpack(kind: str, value: Any) -> Any:
    """What `pack` was given."""
    if kind == "record":
        return ArrayRecord({name: Array(array) for name, array in value.items()})
    if kind == "dict":
        return {key: unpack(*item) for key, item in value.items()}
    if kind == "list":
        return [unpack(*item) for item in value]
    return value
