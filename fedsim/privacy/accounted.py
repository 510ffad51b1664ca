"""What the client-level mechanisms share: keys checked, noise solved for, every round written down before its release."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.checks import require_int, require_number, shown
from fedsim.privacy import accounting
from fedsim.privacy.base import Protection, Setting
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.noise import NoiseSource
from fedsim.types import FedsimError

OUTSIDE = (
    "Measurements of the simulation are outside the guarantee and are not to be published with the model: the accuracy on "
    "clients' held-out examples, failures and their reasons (in summary.json and report.html too), clients.parquet, "
    "lineage.parquet, the counts of rounds.parquet, privacy_journal.jsonl (which names who took part), and baselines/, which are "
    "trained without a mechanism."
)
STREAM_OUTSIDE = (
    "Models are judged on what comes before anybody trains on it, and that is measured on the data in clear: the prequential "
    "figures, the alarms and the counts of what came to whom and when are outside the guarantee as well."
)


def outside(setting: Setting) -> list[str]:
    """What a run writes that no promise covers."""
    return [OUTSIDE] if setting.stream is None else [OUTSIDE, STREAM_OUTSIDE]


@dataclass(frozen=True)
class Budget:
    """The keys that every mechanism has: how much is promised, and from where the noise is drawn.

    epsilon: noise is solved for it, and it is the budget; or noise_multiplier, and `budget` stops the run (None: no stop).
    """

    epsilon: float | None
    noise_multiplier: float | None
    delta: float
    budget: float | None
    secure_rng: bool

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            both = "both are given" if self.epsilon is not None else "neither is given"
            raise FedsimError(
                f"privacy.epsilon and privacy.noise_multiplier exclude each other and {both}; give one, as in privacy.epsilon=4"
            )
        if self.epsilon is not None:
            require_number("privacy.epsilon", self.epsilon, above=0)
            if self.budget is not None:
                raise FedsimError(
                    f"privacy.epsilon={self.epsilon:g} is a budget already, beside privacy.budget={self.budget:g}; leave one out"
                )
        if self.noise_multiplier is not None:
            require_number("privacy.noise_multiplier", self.noise_multiplier, low=0)
        if self.budget is not None:
            require_number("privacy.budget", self.budget, above=0)
        require_number("privacy.delta", self.delta, above=0, below=1)
        if not isinstance(self.secure_rng, bool):
            raise FedsimError(
                f"privacy.secure_rng={shown(self.secure_rng)} is neither true nor false; give one of them"
            )

    @property
    def limit(self) -> float | None:
        """The epsilon that the run may not exceed."""
        return self.epsilon if self.epsilon is not None else self.budget

    def check_delta(self, number: int, what: str) -> None:
        """Refuse a delta that would allow one of `number` to be given away whole."""
        if self.delta >= 1 / max(number, 1):
            raise FedsimError(
                f"privacy.delta={self.delta:g} is not below 1/{number} ({what}), which protects no one; "
                f"lower it, as in privacy.delta={0.1 / max(number, 1):.0e}"
            )


def check_max_participations(value: int | None) -> None:
    """At least one round a client, or None for no limit."""
    if value is not None:
        require_int("privacy.max_participations", value, low=1)


def refuse_setting(setting: Setting, unit: str, *, linear: bool) -> None:
    """Refuse an algorithm that sends more than one bounded vector, or (where updates are summed) needs more than the sum."""
    if unit != "example" and setting.num_clients < 2:
        raise FedsimError(
            f"privacy={unit} hides one client among others and there is one; raise population.num_clients, or use privacy=example"
        )
    if linear and not setting.linear:
        raise FedsimError(
            f"strategy={setting.strategy} needs each client's own update, and privacy={unit} releases their sum alone; "
            "use strategy=fedavg, fedavgm, fedadam, fedyogi, fedadagrad or fedprox, or privacy=local"
        )
    if not setting.one_vector:
        raise FedsimError(
            f"strategy={setting.strategy} makes clients send numbers beside their update, which privacy={unit} does not cover; "
            "use strategy=fedavg or another that sends the update alone"
        )


class Booked(Protection):
    """A mechanism that keeps books: where noise comes from, what was released, and what a replay must not repeat.

    deterministic: whether a round played again gives the same bits; once false for a run it stays so. charged: the round that is
    under way. heard: on a device elsewhere, how often the server began it.
    """

    def __init__(self, setting: Setting, secure: bool) -> None:
        self.setting, self.deterministic = setting, setting.deterministic
        self.source = NoiseSource(setting.seed, secure)
        self.book = Ledger(repeats_count=secure or not setting.deterministic)
        self.charged = 0
        self.heard: dict[int, int] = {}

    def cohort_seed(self, seed: int) -> int:
        """See Protection."""
        return int.from_bytes(os.urandom(32), "little") if self.source.secure else seed

    def purpose(self, what: str, round: int) -> str:
        """The draw's name. A round that is played again where its bits may differ must not reuse its noise."""
        again = max(self.book.attempts(round), self.heard.get(round, 0))
        return what if again <= 1 or self.deterministic else f"{what} {again}"

    def keep_journal(self, path: Path, resumed_after: int | None) -> None:
        """See Protection; what was released after the checkpoint counts again unless it will be the very same bits."""
        self.book.journal = path
        self.book.recount(path, resumed_after or 0)  # a run may have been killed before its first checkpoint

    def charge(self, round: int, cohort: np.ndarray) -> None:
        """In the journal first, then in the book."""
        self.charged = round
        self.book.charge(round, cohort.tolist())

    def broadcast(self) -> dict[str, float]:
        """How often this round was begun, where that names noise that devices draw: they do not have the book."""
        return {} if self.deterministic else {"privacy-attempt": self.book.attempts(self.charged)}

    def heed(self, numbers: Mapping[str, Any]) -> None:
        """See Protection."""
        if "privacy-attempt" in numbers:
            self.heard, self.deterministic = {numbers["server-round"]: int(numbers["privacy-attempt"])}, False

    def state(self) -> dict[str, Any]:
        """What was spent."""
        return {"deterministic": self.deterministic, "ledger": self.book.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Protection."""
        self.deterministic &= bool(state["deterministic"])  # rounds begun on CUDA stay what they were
        self.book.repeats_count = self.source.secure or not self.deterministic
        self.book.load_state(state["ledger"])


class Accounted(Booked):
    """A mechanism whose every release is alike, so that a count of releases is all an accountant needs.

    Where participation is public (no sampling hides it) a client spends only in its own rounds, at most
    `max_participations`; else all clients spend in every round.
    """

    trust = ""
    against = ""
    name = ""

    def __init__(
        self, keys: Budget, setting: Setting, mechanism: accounting.Mechanism, max_participations: int | None
    ) -> None:
        super().__init__(setting, keys.secure_rng)
        self.keys, self.max_participations = keys, max_participations
        self.public = max_participations is not None or setting.sampling not in ("poisson", "fixed")
        self.warnings: list[str] = []
        z = keys.noise_multiplier
        if z is None:
            assert keys.epsilon is not None
            z = accounting.solve(mechanism, self.planned, keys.epsilon, keys.delta)
        self.mechanism = replace(mechanism, noise_multiplier=z)  # type: ignore[type-var]

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over the clipping norm; `noise_removed` does not change the claim."""
        return self.mechanism.noise_multiplier

    @property
    def noise_scale(self) -> float:
        """What the noise is really drawn with: the same, unless it was removed on purpose."""
        return 0.0 if self.noise_removed else self.noise_multiplier

    @property
    def planned(self) -> int:
        """Releases that the worst client pays for when all rounds are run."""
        rounds = self.setting.rounds
        return rounds if self.max_participations is None else min(rounds, self.max_participations)

    @property
    def spent_count(self) -> int:
        """Releases that the worst client has paid for so far."""
        if not self.public:
            return self.book.releases
        return max(self.book.charges.values(), default=0)

    def rounds_left(self, most: int) -> int:
        """By the budget; where clients pay for their own rounds, those that cannot pay are not eligible instead."""
        if self.max_participations is not None:
            return most if len(self.within_limits()) else 0
        if self.keys.limit is None:
            return most
        spent = self.spent_count
        return max(accounting.affordable(self.mechanism, self.keys.limit, self.keys.delta, spent + most) - spent, 0)

    def eligible(self, round: int) -> np.ndarray | None:
        """Those that have not reached `max_participations`, nor what the budget pays for."""
        return None if self.max_participations is None else self.within_limits()

    def within_limits(self) -> np.ndarray:
        """Clients that may take part once more, ascending."""
        assert self.max_participations is not None
        limit = self.max_participations
        if self.keys.limit is not None:
            limit = accounting.affordable(self.mechanism, self.keys.limit, self.keys.delta, limit)
        return self.book.at_most(self.setting.num_clients, limit)

    def warn_of_supply(self) -> None:
        """Say so where limited participation ends the run before its rounds are over."""
        if self.max_participations is None:
            return
        rounds = int(self.setting.num_clients * self.planned / max(self.setting.cohort_size, 1e-9))
        if rounds < self.setting.rounds:
            self.warnings.append(
                f"{self.setting.num_clients} clients that take part at most {self.max_participations} times fill about {rounds} of "
                f"{self.setting.rounds} rounds, and the run ends when no one is left"
            )

    def client_epsilons(self, num_clients: int) -> np.ndarray | None:
        """Everyone's is the same where sampling hides who took part; else each its own."""
        counts = [
            self.book.charges.get(client, 0) if self.public else self.book.releases for client in range(num_clients)
        ]
        return self.epsilons_at(np.array(counts))

    def epsilons_at(self, counts: np.ndarray) -> np.ndarray:
        """Epsilon after so many releases, for each number."""
        different, places = np.unique(counts, return_inverse=True)
        return np.array(accounting.epsilons_after(self.mechanism, different.tolist(), self.keys.delta))[places]

    def columns(self, due: bool = True) -> dict[str, Any]:
        """Epsilon after this round, of the client that has spent most."""
        (epsilon,) = accounting.epsilons_after(self.mechanism, [self.spent_count], self.keys.delta)
        return {"epsilon": epsilon if np.isfinite(epsilon) else None}

    def describe(self, count: int) -> dict[str, Any]:
        """The keys that plan.json and privacy.json share, after `count` releases."""
        spent = accounting.spend(self.mechanism, count, self.keys.delta)
        return {
            "noise_multiplier": self.noise_multiplier,
            "unit": self.unit,
            "adjacency": self.mechanism.adjacency,
            "accountant": spent.accountant,
            "delta": self.keys.delta,
            "epsilon": spent.epsilon if np.isfinite(spent.epsilon) else None,
            "epsilon_by": {name: spent.by.get(name) for name in ("pld", "rdp", "prv")},
        }

    def plan(self) -> dict[str, Any]:
        """For all rounds."""
        none = ["the noise multiplier is 0, so no epsilon can be stated"] if self.noise_multiplier == 0 else []
        return {**self.describe(self.planned), "warnings": [*self.warnings, *none]}

    def details(self) -> dict[str, Any]:
        """What privacy.json says beside the promise: sensitivity, denominator and the like."""
        return {}

    def ledger(self) -> dict[str, Any]:
        """For the rounds that were released."""
        removed = ["The noise was removed on purpose (audit.remove_noise=true): nothing is protected in this run."]
        no_noise = ["The noise multiplier is 0, so no epsilon can be stated."] if self.noise_multiplier == 0 else []
        return {
            "mechanism": self.name,
            **self.describe(self.spent_count),
            **self.details(),
            "renyi": None if self.noise_removed else accounting.renyi(self.mechanism, self.spent_count),
            "rounds": self.book.releases,
            "rounds_planned": self.setting.rounds,
            "participations": {"most": max(self.book.charges.values(), default=0), "limit": self.max_participations},
            "budget": self.keys.limit,
            "generator": self.source.generator,
            **({"noise_removed": True} if self.noise_removed else {}),
            "trust": self.trust,
            "against": self.against,
            "caveats": [*(removed if self.noise_removed else []), *no_noise, *self.warnings, *outside(self.setting)],
        }

    def state(self) -> dict[str, Any]:
        """What was spent, and the noise that was promised: more rounds do not make it larger."""
        return super().state() | {"noise_multiplier": self.noise_multiplier}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Protection."""
        self.mechanism = replace(self.mechanism, noise_multiplier=float(state["noise_multiplier"]))  # type: ignore[type-var]
        super().load_state(state)
