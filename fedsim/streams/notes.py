"""What a device writes down of its own stream when rows come: labels that it asked for, guesses, and what the model said.

Kept beside the algorithm's own state on the device, under names that begin with NOTES, so that it is in every checkpoint and
goes with the client to whichever worker has it next. Arrays are filled up to powers of two with rows that stand for nothing:
the states of many clients are then alike in shape, and lie in few files.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fedsim.streams.asking import Purse
from fedsim.types import Params

NOTES = "stream/"
"""Before the names of what is kept."""

NOTHING = -1
"""The position of a row that fills up."""


class Notes(NamedTuple):
    """One client's. Positions are those of its stream, ascending.

    asked: (a,) int64 whose labels were bought. guessed: (g,) int64, and guesses: (g,) int64 their labels. seen: (s,) int64, and
    answers: (s, classes) float32 probabilities of the model that there was when they came.
    """

    asked: np.ndarray
    guessed: np.ndarray
    guesses: np.ndarray
    seen: np.ndarray
    answers: np.ndarray
    purse: Purse


def blank(num_classes: int) -> Notes:
    """Of a client to whom nothing has come."""
    none = np.empty(0, np.int64)
    return Notes(none, none, none, none, np.empty((0, num_classes), np.float32), Purse())


def as_state(notes: Notes) -> Params:
    """As arrays to keep on the device."""
    columns = {name: _filled(getattr(notes, name)) for name in ("asked", "guessed", "guesses", "seen", "answers")}
    columns["purse"] = np.array(notes.purse, np.float64)
    return {f"{NOTES}{name}": torch.from_numpy(column) for name, column in columns.items()}


def from_state(state: Params, num_classes: int) -> Notes:
    """The notes among what a client keeps; blank where it has none."""
    if f"{NOTES}purse" not in state:
        return blank(num_classes)
    own = {name.removeprefix(NOTES): array.numpy() for name, array in state.items() if name.startswith(NOTES)}
    guessed, seen = own["guessed"] != NOTHING, own["seen"] != NOTHING
    return Notes(
        own["asked"][own["asked"] != NOTHING],
        own["guessed"][guessed],
        own["guesses"][guessed],
        own["seen"][seen],
        own["answers"][seen],
        Purse(*own["purse"].tolist()),
    )


def _filled(rows: np.ndarray) -> np.ndarray:
    """(n, ...) followed by NOTHING, up to 8 rows or a power of two."""
    room = max(8, 1 << max(0, len(rows) - 1).bit_length())
    filled = np.full((room, *rows.shape[1:]), NOTHING, rows.dtype)
    filled[: len(rows)] = rows
    return filled
