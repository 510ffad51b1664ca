"""What a privacy mechanism is to a run: `Setting` is what it must know, `Protection` is what it does.

A part of `conf/privacy/` holds the keys that a user types; its `protect(setting)` checks them against the run and gives
the Protection. The base class is the run without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedsim.training import LocalTraining
from fedsim.transforms import Transform, on_device
from fedsim.types import FedsimError, Params

if TYPE_CHECKING:
    from fedsim.streams.stream import Stream
    from fedsim.training.dpsgd import DPSGD

Payload = dict[str, Any]
"""What is said in a conversation beside training: bytes, numbers, strings, and lists of one of these, by name."""

Ask = Callable[[str, Mapping[int, Payload]], dict[int, Payload]]
"""(phase, payload by client) -> answer by client; a client that did not answer is absent."""


CANARY = -2
"""The `client` of an audit's own: none of the population."""


class RoundAborted(FedsimError):
    """Nothing can be released of this round; the run may go on without it."""


@dataclass(frozen=True)
class Setting:
    """What a mechanism must know of a run before it can promise anything.

    sampling: the sampler's kind: poisson, fixed, all, or unknown. cohort_size: expected clients a round. num_examples:
    (clients,) training examples of each. linear: the strategy needs the mean of the updates alone. one_vector: a client
    sends its update and no number beside it. shapes: of the arrays that training changes, each once (`moving_arrays`).
    deterministic: a round played again gives the same bits. resumed: the run goes on from a checkpoint, which holds the noise.
    stream: by which examples come; None where they are all there from the start.
    """

    seed: int
    rounds: int
    num_clients: int
    sampling: str
    cohort_size: float
    num_examples: np.ndarray
    training: LocalTraining
    strategy: str
    linear: bool
    one_vector: bool
    shapes: dict[str, torch.Size]
    deterministic: bool = True
    resumed: bool = False
    stream: Stream | None = None


class Protection:
    """No mechanism: every update is sent as it is. Subclasses override what theirs needs.

    unit: what is protected (example, client), or None. sums: clients send transformed updates of equal weight, which are
    summed and released by `release`, over the fixed `denominator`; else each sends the model that it trained. local_steps: how
    devices train privately. noise_removed: the noise is left out while the claim stands, for an audit to find out.
    takes_canaries: whether an audit may add clients of its own to the sum. hides_failures: a client whose training failed sends
    a zero update like any other, since whom it sends to is not trusted to know. moving: each array that training changes, by
    name, and the name under which it is sent (the same, but for weights that two layers share).
    """

    unit: str | None = None
    sums: bool = False
    denominator: float = 1.0
    noise_removed: bool = False
    takes_canaries: bool = True
    hides_failures: bool = False
    moving: Mapping[str, str] = MappingProxyType({})
    transforms: tuple[Transform, ...] = ()
    local_steps: DPSGD | None = None

    def cohort_seed(self, seed: int) -> int:
        """The seed that a round's cohort is drawn by: where noise is secret who took part must be as well."""
        return seed

    def rounds_left(self, most: int) -> int:
        """How many more rounds the budget pays for, at most `most`."""
        return most

    def eligible(self, round: int) -> np.ndarray | None:
        """Clients that may still take part in this round, ascending; None for all."""
        return None

    def charge(self, round: int, cohort: np.ndarray) -> None:
        """Write down that this round will be released with this cohort; called before anything is sent."""

    def keep_journal(self, path: Path, resumed_after: int | None) -> None:
        """Where releases are written down before they happen. resumed_after: the round of the checkpoint gone on from."""

    def broadcast(self) -> dict[str, float]:
        """Numbers that devices must know this round, sent beside the model."""
        return {}

    def heed(self, numbers: Mapping[str, Any]) -> None:
        """On the device: take in what was broadcast."""

    def open_round(self, round: int, cohort: np.ndarray, ask: Ask) -> None:
        """What must be said between server and clients before training."""

    def answer(self, client: int, phase: str, payload: Payload, memory: dict[str, Any]) -> Payload:
        """A client's side of that conversation. memory: what this client keeps on its device, for it to change."""
        return {}

    def on_device(self, update: Params, client: int, round: int, memory: dict[str, Any]) -> Params:
        """What leaves the device of an update. Raises FedsimError where nothing can: the client then drops out."""
        return on_device(self.transforms, update, client, round)

    def canary(self, update: Params, round: int) -> Params:
        """What an audit's own client adds to the sum."""
        return self.on_device(update, CANARY, round, {})

    def sent(self, like: Params) -> Params:
        """Arrays of the names, shapes and types that one client sends, by the model's own."""
        return like

    def refusal(self, arrays: Params) -> str | None:
        """What is wrong with one client's arrays as they came over the wire; None where nothing is."""
        return None

    def close_round(self, round: int, survivors: np.ndarray, ask: Ask) -> None:
        """What must be said after training, when it is known whose updates arrived."""

    def release(self, total: Params, round: int) -> Params:
        """The mean update that the server may see, from the sum of what was sent (zeros where no one took part)."""
        return total

    def columns(self, due: bool = True) -> dict[str, Any]:
        """More columns of this round's row in rounds.parquet. due: the round is evaluated, so that dear ones are wanted too."""
        return {}

    def client_epsilons(self, num_clients: int) -> np.ndarray | None:
        """(clients,) epsilon that each client has spent so far; None where none is stated."""
        return None

    def plan(self) -> dict[str, Any]:
        """The keys of plan.json that a mechanism fills in: for the rounds that are to be run."""
        return {
            "noise_multiplier": None,
            "unit": None,
            "adjacency": None,
            "accountant": None,
            "delta": None,
            "epsilon": None,
            "epsilon_by": {"pld": None, "rdp": None, "prv": None},
            "warnings": [],
        }

    def ledger(self) -> dict[str, Any]:
        """What privacy.json says: for the rounds that were run."""
        return {
            "mechanism": "none",
            **self.plan(),
            "trust": "the server sees every client's update",
            "caveats": ["no privacy mechanism: no epsilon can be stated"],
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: numbers, strings, numpy arrays, and lists and dicts (of string keys) of them."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
