"""privacy=example on a stream: the books of examples that come, are trained on for a while, and go.

What is promised. Neighbours are two runs whose streams differ in one example of one client: in the second run it comes in the same
round, with a label in the same round, and lies in memory like before, but gives no gradient (`zero-out`). So which other examples
are in memory, how many, and who may take part are the same in both: all that follows from rounds, counts and draws, which are
outside the guarantee as they are for data that stay. Nothing of what an example holds moves another one into or out of a memory.

What it costs. The two runs differ in the steps of DP-SGD of the rounds in which this client trained and the example lay in its
memory, each a Poisson-sampled Gaussian release at the rate of that round: these compose, and no others. What one example costs
adds nothing to what another costs (parallel composition), so a client's epsilon is the largest of its examples'. With
`streams.memory=once` an example is in one round, and epsilon does not grow with the rounds; with a window it grows for as many
rounds as an example is in it. An example whose label comes late counts from the label's round: nothing trains on it before.

Noise is solved for the example that would be trained on most if its client took part in every round in which it has anything, or
in `max_participations` of these. Where noise is given, a client may take part in a round only if none of the examples in its memory
would exceed the budget by that; so it leaves when its oldest example is spent, and is back if the memory ever lets that one go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedsim.privacy import accounting
from fedsim.privacy.accounted import Budget, outside
from fedsim.privacy.base import Setting
from fedsim.privacy.budgets import draw_groups
from fedsim.privacy.example import HALVES, UNLIMITED, ExamplePrivacy
from fedsim.privacy.example_accounts import classes
from fedsim.privacy.exposure import Exposure, front
from fedsim.privacy.ledger import read_journal
from fedsim.privacy.private_devices import PrivateDevices
from fedsim.types import FedsimError

MAX_ACCOUNTS = 4
"""By budget group: noise is solved for each, for all kinds of examples that its clients may hold."""

MOST_EXACT = 64
"""Examples whose own epsilon is told by the tightest accountant; where there are more, by RDP, the worst one excepted."""

PUBLIC = (
    "How many examples come to each client, when they and their labels come, which of them its memory holds, who took part in "
    "which round, and whether a client failed are outside the guarantee."
)


class StreamAccount(NamedTuple):
    """Clients with one noise. usages: (n, rates) steps by rate of those of their examples that are trained on most, by the plan."""

    keys: Budget
    usages: np.ndarray


class Worst(NamedTuple):
    """The example that has spent most. usage: (rates,) its steps."""

    account: int
    usage: np.ndarray
    epsilon: float


class StreamedExample(PrivateDevices):
    """The books of examples in memories that change.

    times: (clients, rounds + 1) how often each was charged for each round. paid: (accounts,) the last round until which the noise
    is enough for whoever takes part.
    """

    def __init__(self, part: ExamplePrivacy, setting: Setting) -> None:
        super().__init__(part, setting)
        assert setting.stream is not None
        self.exposure = Exposure.of(setting.stream, setting.training, setting.rounds)
        counts = setting.stream.label_counts(setting.rounds)
        if not counts.any():
            raise FedsimError(
                f"no example with a label comes in rounds={setting.rounds}, so that privacy=example has nothing to protect; raise "
                "streams.rate or rounds, or lower streams.label_delay"
            )
        self.keys.check_delta(int(counts[counts > 0].min()), "one over the examples of the smallest client")
        self.times = np.zeros(self.exposure.sizes.shape, np.int16)
        self.accounts: list[StreamAccount] = []
        self.account_of = np.zeros(len(counts), np.int64)
        self._open_accounts()
        solved: list[float] = []
        for account in self.accounts:
            solved.append(self._solve(account, solved[-1] if solved else 1.0))
        self.z = np.array(solved)  # clients that hold nothing by the plan have some too, and limits beyond the plan
        self._spent: dict[tuple[int, bytes], float] = {}
        self._affords: dict[tuple[int, bytes], bool] = {}
        self.paid = np.array([self._paid(index) for index in range(len(self.accounts))])
        if not self.rounds_left(setting.rounds):
            raise FedsimError(
                f"privacy.budget={self.accounts[0].keys.limit:g} does not pay for one round of any client with "
                f"privacy.noise_multiplier={self.keys.noise_multiplier:g}; raise one of them"
            )
        self.check_count_noise()

    def _open_accounts(self) -> None:
        """Clients whose examples are trained on about as much share an account; who never holds anything is in the largest."""
        exposure, part = self.exposure, self.part
        everyone = np.arange(len(self.account_of))
        owners, usages = exposure.accounts(everyone, exposure.held.astype(np.int64), part.max_participations)
        weight = np.zeros(len(everyone))
        np.maximum.at(weight, owners, exposure.weight(usages))
        groups = draw_groups([group.share for group in part.groups] or [1.0], len(everyone), self.setting.seed)
        for number, keys in enumerate(part.keys):
            own = np.flatnonzero(groups == number)
            kinds = np.zeros(len(own), np.int64)
            if (weighs := weight[own] > 0).any():
                kinds[weighs] = classes(weight[own][weighs], MAX_ACCOUNTS)
            for kind in np.unique(kinds):
                members = own[kinds == kind]
                self.account_of[members] = len(self.accounts)
                self.accounts.append(StreamAccount(keys, front(usages[np.isin(owners, members)])))

    def _solve(self, account: StreamAccount, guess: float) -> float:
        """z at which no example of these clients spends more than is promised; guess: where to look first."""
        keys, exposure = account.keys, self.exposure
        if keys.epsilon is None:
            return float(keys.noise_multiplier or 0.0)
        z = 0.0
        for usage in account.usages[np.argsort(-exposure.weight(account.usages), kind="stable")]:
            if not z or not accounting.within(exposure.mechanism(usage, z), 1, keys.epsilon, keys.delta):
                z = accounting.solve(exposure.mechanism(usage, z or guess), 1, keys.epsilon, keys.delta)
        return z or guess

    def _paid(self, index: int) -> int:
        account = self.accounts[index]
        if account.keys.limit is None:
            return UNLIMITED
        if account.keys.epsilon is not None or all(self._is_within(index, usage) for usage in account.usages):
            return self.setting.rounds
        return 0

    # What the server asks

    def rounds_left(self, most: int) -> int:
        """All of them, unless in none of them anybody who has data may take part any more."""
        if self._unlimited(self.charged + most):
            return most
        waiting = False
        for round in range(self.charged + 1, self.charged + most + 1):
            able = self._able(round)
            if able.any():
                return most
            waiting |= len(able) > 0
        return 0 if waiting else most

    def eligible(self, round: int) -> np.ndarray | None:
        """Those whose examples in memory all bear one more round; None where none has a limit."""
        if self._unlimited(round):
            return None
        out = self._holding(round)[~self._able(round)]
        return np.setdiff1d(np.arange(len(self.account_of)), out, assume_unique=True)

    def _unlimited(self, round: int) -> bool:
        return self.part.max_participations is None and bool((self.paid >= round).all())

    def _holding(self, round: int) -> np.ndarray:
        return np.flatnonzero(self.exposure.sizes[:, round])

    def _able(self, round: int) -> np.ndarray:
        """(k,) bool of the clients that hold anything in this round: whether they may train on it."""
        clients = self._holding(round)
        most = UNLIMITED if self.part.max_participations is None else self.part.max_participations
        able = self.participations()[clients] < most
        asked = np.flatnonzero(able & (self.paid[self.account_of[clients]] < round))
        if len(asked):
            accounts = self.account_of[clients[asked]]
            usages = self.exposure.account_in(clients[asked], self.times[clients[asked]], round)
            able[asked] = [self._is_within(int(index), usage) for index, usage in zip(accounts, usages, strict=True)]
        return able

    def _is_within(self, index: int, usage: np.ndarray) -> bool:
        """Whether an example's steps are within what its client was promised; remembered, since it is asked every round."""
        keys, key = self.accounts[index].keys, (index, usage.tobytes())
        if key not in self._affords:
            assert keys.limit is not None
            self._affords[key] = accounting.within(self._mechanism(index, usage), 1, keys.limit, keys.delta)
        return self._affords[key]

    def keep_journal(self, path: Path, resumed_after: int | None) -> None:
        """See Booked; rounds that count again are charged again."""
        super().keep_journal(path, resumed_after)
        if self.book.repeats_count:
            for entry in read_journal(path):
                if (resumed_after or 0) < entry.round <= self.setting.rounds:
                    np.add.at(self.times, (entry.clients, entry.round), 1)

    def charge(self, round: int, cohort: np.ndarray) -> None:
        """See Booked; and in which round that was."""
        super().charge(round, cohort)
        self.times[cohort, round] += 1

    # What was spent

    def clients_spent(self, round: int) -> int:
        """See PrivateDevices: those that hold examples which they may not train on in this round."""
        return 0 if self._unlimited(round) else int((~self._able(round)).sum())

    def client_epsilons(self, num_clients: int) -> np.ndarray:
        """(clients,) what the example of each has spent that was trained on most; an upper bound where there are many."""
        spent, worst = np.zeros(num_clients), self._worst(self._used())
        used = {index: (owners, usages) for index, owners, usages in self._used()}
        exact = sum(len(np.unique(usages, axis=0)) for _, usages in used.values()) <= MOST_EXACT
        for index, (owners, usages) in used.items():
            distinct, which = np.unique(usages, axis=0, return_inverse=True)
            bound = self._epsilon if exact else self._rdp
            epsilons = np.array([bound(index, usage) for usage in distinct])
            np.maximum.at(spent, owners, epsilons[which.reshape(-1)])
        return np.minimum(spent, worst.epsilon)

    def _used(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """By account: (n,) clients that took part, each as often as it has examples to compare, and (n, rates) their steps."""
        who = np.flatnonzero(self.times.any(1))
        owners, usages = self.exposure.accounts(who, self.times[who].astype(np.int64))
        for index in range(len(self.accounts)):
            own = (self.account_of[owners] == index) & usages.any(1)
            if own.any():
                yield index, owners[own], usages[own]

    def _worst(self, used: Iterator[tuple[int, np.ndarray, np.ndarray]]) -> Worst:
        """Who has spent most. What RDP already puts below the worst so far need not be asked of the tighter accountants."""
        worst = Worst(0, np.zeros(len(self.exposure.rates), np.int64), 0.0)
        for index, _, usages in used:
            candidates = sorted(((self._rdp(index, usage), usage) for usage in front(usages)), key=lambda one: -one[0])
            for bound, usage in candidates:
                if bound > worst.epsilon and (epsilon := self._epsilon(index, usage)) > worst.epsilon:
                    worst = Worst(index, usage, epsilon)
        return worst

    def _epsilon(self, index: int, usage: np.ndarray) -> float:
        key = (index, usage.tobytes())
        if key not in self._spent:
            delta = self.accounts[index].keys.delta
            (self._spent[key],) = accounting.epsilons_after(self._mechanism(index, usage), [1], delta)
        return self._spent[key]

    def _rdp(self, index: int, usage: np.ndarray) -> float:
        return accounting.by_rdp(self._mechanism(index, usage), 1, self.accounts[index].keys.delta)

    def _mechanism(self, index: int, usage: np.ndarray) -> accounting.Mechanism:
        return self.exposure.mechanism(usage, float(self.z[index]))

    # What is reported

    def columns(self, due: bool = True) -> dict[str, Any]:
        """Epsilon so far of the example that has spent most, of evaluated rounds; and how many clients had left."""
        epsilon = self._worst(self._used()).epsilon if due else math.inf
        return {"epsilon": epsilon if math.isfinite(epsilon) else None, "clients_spent": self.left}

    def plan(self) -> dict[str, Any]:
        """Of the example that may spend most."""
        planned = ((i, np.zeros(0, np.int64), account.usages) for i, account in enumerate(self.accounts))
        worst = self._worst(planned)
        described = self._described(worst)
        if (budget := self.accounts[worst.account].keys.budget) is not None and worst.epsilon > budget:
            described |= {
                "epsilon": budget,
                "epsilon_by": dict.fromkeys(described["epsilon_by"]),
            }  # clients leave before
        return {**described, "warnings": self._warnings()}

    def _described(self, worst: Worst) -> dict[str, Any]:
        keys = self.accounts[worst.account].keys
        mechanism = self._mechanism(worst.account, worst.usage)
        spent = accounting.spend(mechanism, int(worst.usage.any()), keys.delta)
        rates = self.exposure.rates[worst.usage > 0]
        return {
            **self.described(worst.account, spent, keys.delta, mechanism.adjacency),
            "sampling_rates": [float(rates.min()), float(rates.max())] if len(rates) else None,
            "steps_of_one_example": int(worst.usage.sum()),
        }

    def _warnings(self) -> list[str]:
        warnings = []
        sizes, batch = self.exposure.sizes[self.exposure.held], self.setting.training.batch_size
        if batch is not None and (small := int((sizes <= batch).sum())):
            warnings.append(
                f"in {small:,} of {len(sizes):,} rounds of a client its memory holds no more than client.batch_size={batch} "
                "examples: all of these are in each step, and sampling amplifies nothing for them"
            )
        if not self._unlimited(self.setting.rounds) and self.keys.epsilon is None:
            warnings.append(
                "privacy.budget does not pay for every round: a client leaves when its oldest example in memory has spent it, "
                "until the memory has let that one go"
            )
        if not self.z.all():
            warnings.append("the noise multiplier is 0, so no epsilon can be stated")
        return warnings

    def ledger(self) -> dict[str, Any]:
        """Of the example that has spent most, for the rounds that were released."""
        worst = self._worst(self._used())
        caveats = [*self._warnings(), PUBLIC, HALVES, *outside(self.setting)]
        return self.ledger_of(
            (" on a stream", " of what is in memory,"),
            self._described(worst),
            self.exposure.sizes,
            self.accounts[worst.account].keys.limit,
            min(self.charged + 1, self.setting.rounds),
            caveats,
        )

    def state(self) -> dict[str, Any]:
        """What was spent, in which rounds, and the noise that was promised: more rounds do not make it larger."""
        clients, rounds = np.nonzero(self.times)
        return super().state() | {
            "noise_multipliers": self.z,
            "account_of": self.account_of,
            "groups": np.array([self.part.keys.index(account.keys) for account in self.accounts]),
            "paid": self.paid,
            "charged": self.charged,
            "times": {"clients": clients, "rounds": rounds, "times": self.times[clients, rounds]},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """See Protection. Noise that was solved for fewer rounds is not enough for more by itself: then examples have limits."""
        super().load_state(state)
        self.z = np.asarray(state["noise_multipliers"], dtype=np.float64)
        self.account_of = np.asarray(state["account_of"], dtype=np.int64)
        none = np.zeros((0, len(self.exposure.rates)), np.int64)
        self.accounts = [StreamAccount(self.part.keys[int(group)], none) for group in state["groups"]]
        self.paid = np.asarray(state["paid"], dtype=np.int64)
        self.charged = int(state["charged"])
        self.times[:] = 0
        kept = state["times"]
        self.times[np.asarray(kept["clients"], np.int64), np.asarray(kept["rounds"], np.int64)] = kept["times"]
        self._spent.clear()
        self._affords.clear()
