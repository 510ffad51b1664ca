"""The watch over one run: what came in a round goes to the detector on the server, or to those of the clients, which vote."""

from __future__ import annotations

import numpy as np

from fedsim import rng
from fedsim.streams.detectors import Watch
from fedsim.streams.prequential import in_order
from fedsim.streams.series import Detector, State
from fedsim.types import FedsimError


class Watcher:
    """Shown every round's values once, in the order of rounds."""

    def __init__(self, watch: Watch, seed: int) -> None:
        """Raises MissingPackageError where the watch needs a package that is not installed."""
        self.watch, self.seed = watch, seed
        self._detectors: dict[int, Detector] = {rng.SERVER: watch.open(seed, rng.SERVER)}
        self._heard: dict[int, int] = {}
        self._flagged: dict[int, int] = {}

    def update(self, round: int, clients: np.ndarray, counts: np.ndarray, values: np.ndarray) -> bool:
        """Whether `round` is an alarm, from values (n,) or (n, features), `counts` (k,) of each of the clients (k,) in turn."""
        judged = in_order(clients, counts, values)
        if self.watch.where == "server":
            return self._detectors[rng.SERVER].update(judged.rows[0])
        for client, own in zip(judged.clients.tolist(), np.split(judged.rows[0], judged.starts[1:]), strict=False):
            self._heard[client] = round
            if client not in self._detectors:
                self._detectors[client] = self.watch.open(self.seed, client)
            if self._detectors[client].update(own):
                self._flagged[client] = round
        return self._voted(round)

    def _voted(self, round: int) -> bool:
        """Whether enough clients flagged of late. After an alarm all begin anew, lest those slower to notice raise it again."""
        oldest = round - self.watch.vote_rounds
        heard = sum(last > oldest for last in self._heard.values())
        votes = sum(last > oldest for last in self._flagged.values())
        if not votes or votes < self.watch.votes * heard:
            return False
        self._flagged.clear()
        self._detectors = {rng.SERVER: self._detectors[rng.SERVER]}
        return True

    def state(self) -> State:
        """All that later alarms depend on, as a few arrays whatever the number of clients."""
        state = _packed({client: detector.state() for client, detector in self._detectors.items()})
        for name, rounds in (("heard", self._heard), ("flagged", self._flagged)):
            state[name] = np.array(sorted(rounds.items()), dtype=np.int64).reshape(-1, 2)
        return state

    def load_state(self, state: State) -> None:
        """Go on from what `state` gave. Raises FedsimError where that is of another detector."""
        try:
            for client, own in _unpacked(state).items():
                self._detectors[client] = self.watch.open(self.seed, client)
                self._detectors[client].load_state(own)
            self._heard, self._flagged = (dict(state[name].tolist()) for name in ("heard", "flagged"))
        except (KeyError, ValueError, IndexError) as error:
            raise FedsimError(
                f"the checkpoint keeps no detector={self.watch.kind}; resume it as it was, or start anew"
            ) from error


def _packed(states: dict[int, State]) -> State:
    """The arrays of every detector, name by name one after another, with their lengths."""
    clients = sorted(states)
    packed = {"clients": np.array(clients, dtype=np.int64)}
    for name in states[clients[0]]:
        arrays = [states[client][name] for client in clients]
        packed[f"of.{name}"] = np.concatenate(arrays)
        packed[f"lengths.{name}"] = np.array([len(array) for array in arrays], dtype=np.int64)
    return packed


def _unpacked(packed: State) -> dict[int, State]:
    names = [name.removeprefix("of.") for name in packed if name.startswith("of.")]
    clients = packed["clients"].tolist()
    parts = {name: np.split(packed[f"of.{name}"], np.cumsum(packed[f"lengths.{name}"])[:-1]) for name in names}
    return {client: {name: parts[name][place] for name in names} for place, client in enumerate(clients)}
