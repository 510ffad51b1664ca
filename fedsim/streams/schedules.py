"""When the data drift, and for whom: the keys of `drift.*`. Rounds are numbered 1, 2, ...

The forms are those of Gama et al. (2014, doi 10.1145/2523813): sudden, gradual (the new concept comes more and more often),
incremental (it comes bit by bit), recurring (old ones come back).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fedsim.checks import require_choice, require_int, require_number, shown
from fedsim.fleet.draws import uniforms
from fedsim.streams.shifts import KINDS
from fedsim.types import FedsimError

WHO = ("all", "group", "staggered", "few")


class Event(NamedTuple):
    """A drift from round `begins` until round `ends`, the first in which it is complete; new: towards the new concept."""

    begins: int
    ends: int
    new: bool


class Undrifted:
    """No drift: every client stays with its concept."""

    drifts: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base class: what all forms of drift share.

    kind: what changes, see `fedsim.streams.shifts`. classes: of label_swap, those that change places, each to the next and the
    last to the first; None: every class. strength: how much, in the kind's own unit; None: the kind's own default. at: the first
    round of the drift. who: `all` clients; a `group`, the share of them with the lowest numbers; a `few`, the share chosen by
    the seed; or all, `staggered`, each up to `stagger` rounds later. share: of clients, 0 to 1.
    """

    drifts: ClassVar[bool] = True
    form: ClassVar[str]
    by_coin: ClassVar[bool] = False
    """Whether an example is wholly of the one or the other concept, by a coin, rather than somewhere between."""

    kind: str = "label_swap"
    classes: Sequence[int] | None = None
    strength: float | None = None
    at: int = 20
    who: str = "all"
    share: float = 0.5
    stagger: int = 10

    def __post_init__(self) -> None:
        require_choice("drift.kind", self.kind, KINDS)
        if self.classes is not None:
            _require_classes(self.classes, self.kind)
        if self.strength is not None:
            require_number("drift.strength", self.strength)
        self._check_at()
        require_choice("drift.who", self.who, WHO)
        require_number("drift.share", self.share, low=0, high=1)
        require_int("drift.stagger", self.stagger, low=0)

    def _check_at(self) -> None:
        require_int("drift.at", self.at, low=1)

    def progress(self, rounds: np.ndarray) -> np.ndarray:
        """(n,) float64 in [0, 1], how far the new concept has come in rounds (n,) for a client that is not late."""
        raise NotImplementedError

    def events(self, rounds: int) -> list[Event]:
        """What begins within so many rounds, for a client that is not late."""
        raise NotImplementedError

    def touched(self, seed: int, num_clients: int) -> np.ndarray:
        """(num_clients,) bool: who drifts at all; at least one does where share > 0."""
        if self.who not in ("group", "few"):
            return np.ones(num_clients, bool)
        count = max(round(self.share * num_clients), 1 if self.share > 0 else 0)
        ranks = np.arange(num_clients)
        if self.who == "few":
            ranks = np.argsort(np.argsort(uniforms(seed, "drift clients", ranks), kind="stable"))
        return np.asarray(ranks < count)

    def delays(self, seed: int, num_clients: int) -> np.ndarray:
        """(num_clients,) int64 rounds that each client is late."""
        clients = np.arange(num_clients)
        if self.who != "staggered":
            return np.zeros_like(clients)
        return np.floor((self.stagger + 1) * uniforms(seed, "drift delay", clients)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Sudden(Schedule):
    """From round `at` on, all is of the new concept."""

    form: ClassVar[str] = "sudden"

    def progress(self, rounds: np.ndarray) -> np.ndarray:
        """See Schedule."""
        return (rounds >= self.at).astype(np.float64)

    def events(self, rounds: int) -> list[Event]:
        """See Schedule."""
        return [Event(self.at, self.at, True)] if self.at <= rounds else []


@dataclass(frozen=True, kw_only=True)
class Incremental(Schedule):
    """The strength rises evenly from nothing in round `at` to all of it in round at + width."""

    form: ClassVar[str] = "incremental"
    width: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("drift.width", self.width, low=1)

    def progress(self, rounds: np.ndarray) -> np.ndarray:
        """See Schedule."""
        return np.asarray(np.clip((rounds - self.at) / self.width, 0.0, 1.0))

    def events(self, rounds: int) -> list[Event]:
        """See Schedule."""
        return [Event(self.at, self.at + self.width, True)] if self.at <= rounds else []


@dataclass(frozen=True, kw_only=True)
class Gradual(Incremental):
    """The chance that an example is of the new concept rises evenly from 0 in round `at` to 1 in round at + width."""

    form: ClassVar[str] = "gradual"
    by_coin: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class Recurring(Schedule):
    """The new concept comes in round `at`, and every `period` rounds from then on concepts change.

    at: a list gives the rounds of all changes instead, ascending; `period` has no meaning then.
    """

    form: ClassVar[str] = "recurring"
    at: int | Sequence[int] = 20  # type: ignore[assignment]
    period: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("drift.period", self.period, low=1)

    def _check_at(self) -> None:
        if isinstance(self.at, int):
            require_int("drift.at", self.at, low=1)
            return
        if not isinstance(self.at, Sequence) or isinstance(self.at, str) or not self.at:
            raise FedsimError(f"drift.at={shown(self.at)} is no round; give one, or a list as in drift.at=[20,40,60]")
        changes = [require_int("drift.at", change, low=1) for change in self.at]
        if sorted(set(changes)) != changes:
            raise FedsimError(f"drift.at={changes} does not go forward in time; list each round once, ascending")

    def progress(self, rounds: np.ndarray) -> np.ndarray:
        """See Schedule."""
        if isinstance(self.at, int):
            changes = (rounds - self.at) // self.period + 1
            return np.where(rounds < self.at, 0.0, changes % 2)
        return np.asarray(np.searchsorted(np.asarray(self.at), rounds, side="right") % 2, dtype=np.float64)

    def events(self, rounds: int) -> list[Event]:
        """See Schedule."""
        changes = range(self.at, rounds + 1, self.period) if isinstance(self.at, int) else self.at
        return [Event(at, at, number % 2 == 0) for number, at in enumerate(changes) if at <= rounds]


def _require_classes(classes: object, kind: str) -> None:
    if kind != "label_swap":
        raise FedsimError(f"drift.classes belongs to drift.kind=label_swap, not {kind}; leave it null")
    if not isinstance(classes, Sequence) or isinstance(classes, str) or len(set(classes)) < max(2, len(classes)):
        raise FedsimError(
            f"drift.classes={shown(classes)} does not name two or more classes; list their numbers, as in drift.classes=[0,1]"
        )
    for number in classes:
        require_int("drift.classes", number, low=0)
