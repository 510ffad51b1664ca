"""privacy=example: DP-SGD on each device hides any one example of any one client, whoever sees the updates.

Every client pays for itself: for the steps of the rounds in which it took part, at its own sampling rate. Its noise is solved
for the rounds in which it may take part, all of them unless `max_participations` says fewer. No amplification is claimed for
the sampling of clients, so participation may be known to everyone.

Clients of like size share an account (see `example_accounts.py`), by which none spends more than is stated. A client with
fewer examples than a batch takes all of them in each step, and is accounted at rate 1.

Of data that come as streams, whose examples are not there in every round, `streamed_example.py` keeps the books.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsim.checks import require_choice, require_number
from fedsim.privacy import accounting
from fedsim.privacy.accounted import OUTSIDE, Budget, check_max_participations, refuse_setting
from fedsim.privacy.base import Setting
from fedsim.privacy.budgets import read_groups
from fedsim.privacy.example_accounts import NO_ACCOUNT, Account, open_accounts
from fedsim.privacy.private_devices import PrivateDevices
from fedsim.training.dpsgd import CLIPPINGS, WAY_NAMES
from fedsim.types import FedsimError

UNLIMITED = np.iinfo(np.int64).max

HALVES = "What a client half draws from the data beside the gradients is not covered: none of fedsim's own that are admitted does."

CAVEATS = (
    "How many examples each client holds, who took part in which round, and whether a client failed are outside the guarantee.",
    HALVES,
    OUTSIDE,
)


class ExamplePrivacy:
    """The keys of `privacy=example`.

    epsilon: what every client's examples are promised by the end of the run; or noise_multiplier; or budgets, a promise for
    each group of clients. max_participations: a client takes part in no more rounds. budget: beside noise_multiplier, a client
    leaves before the round that would exceed it. clip_norm, clipping, way, target_quantile, clip_lr, count_noise: see DPSGD.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float = 1e-5,
        clip_norm: float = 1.0,
        clipping: str = "flat",
        max_participations: int | None = None,
        budget: float | None = None,
        secure_rng: bool = False,
        way: str = "auto",
        target_quantile: float = 0.5,
        clip_lr: float = 0.2,
        count_noise: float | None = None,
        budgets: Mapping[str, Any] | None = None,
    ) -> None:
        self.groups = read_groups(budgets or {})
        if self.groups and (epsilon is not None or budget is not None):
            key = "epsilon" if epsilon is not None else "budget"
            raise FedsimError(f"privacy.{key} and privacy.budgets exclude each other; leave one of them out")
        self.keys = tuple(
            Budget(
                group.epsilon if noise_multiplier is None else None,
                noise_multiplier,
                delta,
                None if noise_multiplier is None else group.epsilon,
                secure_rng,
            )
            for group in self.groups
        ) or (Budget(epsilon, noise_multiplier, delta, budget, secure_rng),)
        self.clip_norm = require_number("privacy.clip_norm", clip_norm, above=0)
        self.clipping = require_choice("privacy.clipping", clipping, CLIPPINGS)
        self.way = require_choice("privacy.way", way, WAY_NAMES)
        self.target_quantile = require_number("privacy.target_quantile", target_quantile, above=0, below=1)
        self.clip_lr = require_number("privacy.clip_lr", clip_lr, above=0)
        self.count_noise = None if count_noise is None else require_number("privacy.count_noise", count_noise, above=0)
        check_max_participations(max_participations)
        self.max_participations = max_participations

    def protect(self, setting: Setting) -> PrivateDevices:
        """Checked against the run; solves for the noise."""
        refuse_setting(setting, "example", linear=False)
        if setting.stream is not None:
            from fedsim.privacy.streamed_example import StreamedExample

            return StreamedExample(self, setting)
        sizes = setting.num_examples[setting.num_examples > 0]
        if len(sizes) == 0:
            raise FedsimError(
                "no client has training examples that privacy=example could protect; lower population.holdout"
            )
        self.keys[0].check_delta(int(sizes.min()), "one over the examples of the smallest client")
        return ExampleProtection(self, setting)


class ExampleProtection(PrivateDevices):
    """The books of data that stay: a client pays alike for each round in which it takes part."""

    def __init__(self, part: ExamplePrivacy, setting: Setting) -> None:
        super().__init__(part, setting)
        shares = [group.share for group in part.groups] or [1.0]
        self.accounts, self.account_of = open_accounts(setting, part.keys, shares)
        self.z = np.array([z for keys in part.keys for z in self._solve([a for a in self.accounts if a.keys is keys])])
        self.limits = np.array([self._limit(i) for i in range(len(self.accounts))])
        if self.limits.max() == 0:
            raise FedsimError(
                f"privacy.budget={self.accounts[0].keys.limit:g} does not pay for one round of any client with "
                f"privacy.noise_multiplier={self.keys.noise_multiplier:g}; raise one of them"
            )
        self.check_count_noise()
        self._spent: dict[tuple[int, int], float] = {}

    def _solve(self, accounts: list[Account]) -> list[float]:
        """z of each account of one budget group."""
        if not accounts or (keys := accounts[0].keys).epsilon is None:
            return [float(account.keys.noise_multiplier or 0.0) for account in accounts]
        cases = [(account.mechanism(1.0), self.planned * account.steps) for account in accounts]
        return accounting.solve_many(cases, keys.epsilon, keys.delta)

    def _limit(self, index: int) -> int:
        """Rounds that clients of an account may take part in."""
        account, most = self.accounts[index], self.part.max_participations or UNLIMITED
        if account.keys.epsilon is not None:
            return self.planned
        if account.keys.budget is None:
            return most
        planned = self.planned * account.steps
        paid = accounting.affordable(self._mechanism(index), account.keys.budget, account.keys.delta, planned)
        return most if paid >= planned else paid // account.steps

    @property
    def planned(self) -> int:
        """Rounds that a client may take part in when all are run."""
        return min(self.setting.rounds, self.part.max_participations or self.setting.rounds)

    # What the server asks

    def rounds_left(self, most: int) -> int:
        """Until no client may take part any more."""
        left = self._limits_by_client() - self.participations()
        return int(np.clip(left.max(), 0, most)) if self.setting.sampling == "all" else most * int(left.max() > 0)

    def eligible(self, round: int) -> np.ndarray | None:
        """Clients with rounds left; None where none has a limit."""
        limits = self._limits_by_client()
        return None if (limits == UNLIMITED).all() else np.flatnonzero(self.participations() < limits)

    def _limits_by_client(self) -> np.ndarray:
        return np.where(self.account_of == NO_ACCOUNT, UNLIMITED, self.limits[self.account_of])

    def client_epsilons(self, num_clients: int) -> np.ndarray:
        """(clients,) what each has spent, over the rounds in which it took part; an upper bound where accounts are shared."""
        counts = self.participations()
        spent = np.zeros(num_clients)
        for index in range(len(self.accounts)):
            own = self.account_of == index
            distinct = np.unique(counts[own])
            spent[own] = self._epsilons(index, distinct)[np.searchsorted(distinct, counts[own])]
        return spent

    def _epsilons(self, index: int, participations: np.ndarray) -> np.ndarray:
        """After so many rounds each, of one account; remembered, since the books are read every round."""
        missing = [n for n in participations.tolist() if (index, n) not in self._spent]
        if missing:
            account = self.accounts[index]
            counts = [n * account.steps for n in missing]
            found = accounting.epsilons_after(self._mechanism(index), counts, account.keys.delta)
            self._spent |= {(index, n): epsilon for n, epsilon in zip(missing, found, strict=True)}
        return np.array([self._spent[index, n] for n in participations.tolist()])

    def _mechanism(self, index: int) -> accounting.GaussianReleases:
        return self.accounts[index].mechanism(float(self.z[index]))

    def _spent_by(self, participations: np.ndarray) -> list[float]:
        """Of a client of each account, after so many rounds."""
        return [float(self._epsilons(i, participations[i : i + 1])[0]) for i in range(len(self.accounts))]

    def _worst(self, participations: np.ndarray) -> tuple[int, int]:
        """The account that has spent most, and its rounds."""
        worst = int(np.argmax(self._spent_by(participations)))
        return worst, int(participations[worst])

    def _busiest(self) -> np.ndarray:
        """(accounts,) the most rounds that a client of each has been charged for."""
        counts = self.participations()
        return np.array([counts[self.account_of == index].max() for index in range(len(self.accounts))])

    # What is reported

    def columns(self, due: bool = True) -> dict[str, Any]:
        """Epsilon so far of the client that has spent most; of evaluated rounds, since each account costs a composition."""
        spent = {"clients_spent": self.left}
        if not due:
            return {"epsilon": None} | spent
        account, participations = self._worst(self._busiest())
        epsilon = float(self._epsilons(account, np.array([participations]))[0])
        return {"epsilon": epsilon if math.isfinite(epsilon) else None} | spent

    def clients_spent(self, round: int) -> int:
        """See PrivateDevices."""
        return int((self.participations() >= self._limits_by_client()).sum())

    def plan(self) -> dict[str, Any]:
        """Of the client that may spend most, over the rounds in which it may take part."""
        worst, participations = self._worst(np.minimum(self.limits, self.planned))
        return {**self._described(worst, participations), "warnings": self._warnings()}

    def _described(self, index: int, participations: int) -> dict[str, Any]:
        account = self.accounts[index]
        spent = accounting.spend(self._mechanism(index), participations * account.steps, account.keys.delta)
        worst = self.described(index, spent, account.keys.delta, self._mechanism(index).adjacency)
        return {**worst, "sampling_rate": account.rate, "steps_per_round": account.steps}

    def _warnings(self) -> list[str]:
        warnings = []
        sizes, batch = self.setting.num_examples, self.setting.training.batch_size
        if batch is not None and (small := int(((sizes > 0) & (sizes <= batch)).sum())):
            warnings.append(
                f"{small} of {(sizes > 0).sum()} clients have no more than client.batch_size={batch} examples: all of these are in "
                "each step, and sampling amplifies nothing for them"
            )
        if out := int((self.limits[self.account_of[self.account_of >= 0]] == 0).sum()):
            warnings.append(f"{out} clients cannot take part at all, since their budget does not pay for one round")
        if not self.z.all():
            warnings.append("the noise multiplier is 0, so no epsilon can be stated")
        return warnings

    def ledger(self) -> dict[str, Any]:
        """Of the client that has spent most, for the rounds that were released."""
        worst, participations = self._worst(self._busiest())
        described, budget = self._described(worst, participations), self.accounts[worst].keys.limit
        caveats = [*self._warnings(), *CAVEATS]
        return self.ledger_of(("", ""), described, self.setting.num_examples, budget, self.charged + 1, caveats)

    def state(self) -> dict[str, Any]:
        """What was spent, and the noise that was promised: more rounds do not make it larger."""
        return super().state() | {"noise_multipliers": self.z, "limits": self.limits}

    def load_state(self, state: dict[str, Any]) -> None:
        """See Protection. Noise that was solved for fewer rounds pays for no more: then a client leaves when these are spent."""
        self.z = np.asarray(state["noise_multipliers"], dtype=np.float64)
        if self.keys.epsilon is not None:
            self.limits = np.asarray(state["limits"], dtype=np.int64)
        super().load_state(state)
        self._spent.clear()
