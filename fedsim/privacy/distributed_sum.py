"""What `privacy=distributed` does in a round: see distributed.py for why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedsim import rng
from fedsim.privacy import accounting
from fedsim.privacy.accounted import Accounted
from fedsim.privacy.base import Ask, Payload, RoundAborted, Setting
from fedsim.privacy.clipping import Clip
from fedsim.privacy.discrete import Words, conditional_round, flatten, padded, rotate, rotate_back, unflatten, wrap
from fedsim.privacy.distributed import NOISES, DistributedPrivacy, fitted, largest_cohort
from fedsim.privacy.secure_aggregation import Aggregator, Entropy, Party
from fedsim.privacy.secure_aggregation.keys import TRAVELS
from fedsim.rng import SERVER
from fedsim.transforms import Transform, on_device, on_server
from fedsim.types import FedsimError, Params

MASKED = "privacy.masked"
"""The one array that a device sends: integers, padded to a power of two."""


class Encode(Transform):
    """Rotation, conditional rounding and this device's share of the noise; on the server all but the noise undone.

    party: whose device half it is, with what the round's opening told it; None on the server.
    """

    def __init__(self, owner: DistributedSum, party: Party | None = None) -> None:
        self.owner, self.party = owner, party

    def on_device(self, update: Params, client: int, round: int) -> Params:
        """(dimension,) integers modulo 2^bits."""
        owner, party = self.owner, self.party
        assert party is not None
        vector = rotate(flatten({name: update[name] for name in owner.setting.shapes}), owner.signs(round)) * (
            owner.scale / owner.clip.clip_norm
        )
        rounded = conditional_round(vector, owner.scale, Words(party.draw(32, "rounding")))
        variance = owner.share_variance(party.memory["clients"])
        noise = owner.sampler(Words(party.draw(32, "noise")), variance, owner.dimension)
        return {MASKED: wrap(rounded + noise, owner.bits)}

    def on_server(self, total: Params, round: int) -> Params:
        """The noisy sum of the updates in their shapes."""
        owner = self.owner
        step = owner.clip.clip_norm / owner.scale
        return unflatten(rotate_back(total[MASKED], owner.signs(round)) * step, owner.setting.shapes)


class Mask(Transform):
    """Secure aggregation's masks, on each vector and off the sum."""

    def __init__(self, owner: DistributedSum, party: Party | None = None) -> None:
        self.owner, self.party = owner, party

    def on_device(self, update: Params, client: int, round: int) -> Params:
        """Under masks; a client who was told that it is alone has nobody to share them with, and its noise is all there is."""
        assert self.party is not None
        if self.party.memory["clients"] == 1:
            return update
        return {MASKED: self.party.masked(update[MASKED], self.owner.bits)}

    def on_server(self, total: Params, round: int) -> Params:
        """As if there had been no masks."""
        aggregator = self.owner.aggregator
        return total if aggregator is None else {MASKED: aggregator.unmask(total[MASKED])}


class DistributedSum(Accounted):
    """Clip, encode, mask; unmask, decode, divide.

    Each client pays for the rounds that it takes part in, which the server sees: no sampling amplifies.
    """

    unit = "client"
    sums = True
    takes_canaries = False
    hides_failures = True
    trust = (
        "the server to follow the protocol of secure aggregation (honest but curious, it sees only the sum), and devices to keep "
        "their shares of the noise to themselves"
    )
    against = (
        "the server, and anyone who sees the models of all rounds and who took part (but a participant knows its own share of "
        "the noise)"
    )

    def __init__(self, part: DistributedPrivacy, setting: Setting) -> None:
        self.part, self.bits = part, part.bits
        self.dimension = padded(sum(shape.numel() for shape in setting.shapes.values()))
        self.largest = largest_cohort(setting)
        kind, self.sampler = NOISES[part.noise]
        rounds = min(setting.rounds, part.max_participations or setting.rounds)
        mechanism = fitted(part, kind(1.0, 1.0, self.dimension, part.least(self.largest)), self.largest, rounds)
        super().__init__(part.keys, setting, mechanism, part.max_participations)
        self.public = True
        self.name = f"distributed {part.noise.replace('_', ' ')} under secure aggregation"
        self.denominator = setting.cohort_size
        self.clip = Clip(part.clip_norm)
        self.entropy = Entropy(setting.seed, part.secure_rng)
        self.transforms = (self.clip, Encode(self), Mask(self))
        self.aggregator: Aggregator | None = None
        self.given_up = 0
        self.device_noise: float | None = None
        if part.dropout >= part.dropout_tolerance and part.dropout:
            self.warnings.append(
                f"privacy.dropout={part.dropout:g} is not below privacy.dropout_tolerance={part.dropout_tolerance:g}, so every "
                "second round or more will be given up"
            )
        if setting.sampling == "poisson":
            self.warnings.append(
                "a Poisson cohort of one client shares masks with nobody: its own noise, then as large as promised, protects it"
            )

    @property
    def scale(self) -> float:
        """The clipping norm in steps of the grid."""
        return float(self.mechanism.scale)  # type: ignore[attr-defined]

    def signs(self, round: int) -> torch.Tensor:
        """(dimension,) of +-1, public: of this round's rotation."""
        drawn = torch.randint(
            2, (self.dimension,), generator=rng.generator(self.setting.seed, round, SERVER, "rotation")
        )
        return (2 * drawn - 1).to(torch.float64)

    def share_variance(self, clients: int) -> float:
        """Of one device's noise, in steps squared, where so many were asked: the fewest that may stay sum to the promise."""
        multiplier = self.noise_scale if self.device_noise is None else self.device_noise
        return (multiplier * self.scale) ** 2 / self.part.least(clients)

    def broadcast(self) -> dict[str, float]:
        """A run that goes on keeps the noise and the grid that it began with: devices are told."""
        return {"privacy-noise": self.noise_scale, "privacy-scale": self.scale}

    def heed(self, numbers: Mapping[str, Any]) -> None:
        """See Protection."""
        if "privacy-noise" in numbers:
            self.device_noise = float(numbers["privacy-noise"])
            self.mechanism = replace(self.mechanism, scale=float(numbers["privacy-scale"]))  # type: ignore[type-var]

    def open_round(self, round: int, cohort: np.ndarray, ask: Ask) -> None:
        """Keys and shares; nothing is to be said to nobody."""
        self.aggregator = None
        if len(cohort) > self.largest:
            raise FedsimError(
                f"round {round} drew {len(cohort)} clients, and privacy.bits={self.bits} was planned for {self.largest} at most; "
                "use sampler=fixed"
            )
        if len(cohort) == 0:
            return
        again = self.book.attempts(round) - 1
        aggregator = Aggregator(
            round,
            cohort.tolist(),
            self.part.least(len(cohort)),
            self.bits,
            self.entropy,
            self.part.neighbours,
            0 if self.deterministic else max(again, 0),
        )
        if len(cohort) == 1:
            ask("advertise", {int(cohort[0]): aggregator.greeting()})
            return
        self.aggregator = aggregator
        aggregator.open(ask)

    def answer(self, client: int, phase: str, payload: Payload, memory: dict[str, Any]) -> Payload:
        """A device's side of secure aggregation."""
        return Party(client, memory, self.entropy).answer(phase, payload)

    def on_device(self, update: Params, client: int, round: int, memory: dict[str, Any]) -> Params:
        """Clip, encode, mask. A device that drops out, by chance or for want of keys, raises."""
        if memory.get("round") != round:
            raise FedsimError(f"it has no keys for round {round}: it was not there when secure aggregation opened it")
        chance = rng.generator(self.setting.seed, round, client, "dropout")
        if self.part.dropout and float(torch.rand((), generator=chance)) < self.part.dropout:
            raise FedsimError("it dropped out, as privacy.dropout has devices do")
        party = Party(client, memory, self.entropy)
        return on_device((self.clip, Encode(self, party), Mask(self, party)), update, client, round)

    def sent(self, like: Params) -> Params:
        """One vector of integers."""
        return {MASKED: torch.zeros(self.dimension, dtype=TRAVELS[self.bits])}

    def refusal(self, arrays: Params) -> str | None:
        """Under its mask a vector tells nothing but its type."""
        wrong = arrays[MASKED].dtype != TRAVELS[self.bits]
        return f"its vector is not of integers of {self.bits} bits" if wrong else None

    def close_round(self, round: int, survivors: np.ndarray, ask: Ask) -> None:
        """The shares that take the masks off the sum of those who answered."""
        if self.aggregator is None:
            return
        try:
            self.aggregator.close(ask, survivors.tolist())
        except FedsimError as error:  # too many dropped out, by chance: another round need not share that
            self.given_up += 1
            raise RoundAborted(str(error)) from error

    def release(self, total: Params, round: int) -> Params:
        """Masks off, decoded, over the fixed denominator. Where no one took part it is zeros without noise: there is no secret."""
        summed = on_server(self.transforms, total, round)
        return {name: array / self.denominator for name, array in summed.items()}

    def columns(self, due: bool = True) -> dict[str, Any]:
        """See Accounted; and what secure aggregation cost beside the vectors: payloads of all clients, seconds at the server."""
        spent = self.aggregator
        return super().columns(due) | {
            "secure_aggregation_bytes_up": spent.bytes_up if spent else 0,
            "secure_aggregation_bytes_down": spent.bytes_down if spent else 0,
            "secure_aggregation_seconds": spent.seconds if spent else 0.0,
        }

    def describe(self, count: int) -> dict[str, Any]:
        """See Accounted; the mechanism's own epsilon is its Renyi curve, converted by dp_accounting."""
        found = super().describe(count)
        by = {"pld": None, "rdp": found["epsilon"], "prv": None}
        return {**found, "accountant": accounting.as_text("rdp"), "epsilon_by": by}

    def details(self) -> dict[str, Any]:
        """See Accounted."""
        mechanism: Any = self.mechanism
        step = self.clip.clip_norm / self.scale
        return {
            "sampling": "none: the server sees who takes part",
            "clip_norm": self.clip.clip_norm,
            "sensitivity": mechanism.l2 * step,
            "denominator": self.denominator,
            "noise": self.part.noise,
            "bits": self.bits,
            "granularity": step,
            "dropout_tolerance": self.part.dropout_tolerance,
            "rounds_given_up": self.given_up,
            "rounds_paid_for": self.book.releases,
        }

    def ledger(self) -> dict[str, Any]:
        """See Accounted. A round that was given up released nothing, and is paid for all the same."""
        found = super().ledger()
        return found | {"rounds": found["rounds"] - self.given_up}

    def state(self) -> dict[str, Any]:
        """See Accounted; and the grid."""
        return super().state() | {"scale": self.scale, "given_up": self.given_up}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Accounted."""
        super().load_state(state)
        self.given_up = int(state["given_up"])
        self.mechanism = replace(self.mechanism, scale=float(state["scale"]))  # type: ignore[type-var]
