"""Noticing drift while a stream runs: a detector sees what a model did on each round's arrivals, and says when it got worse.

The parts `detector=...`: each opens one series (`series.py`) for all clients, or one a client, which a watcher (`watching.py`)
shows what came, round by round.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim import rng
from fedsim.checks import require_choice, require_int, require_number
from fedsim.streams.distances import discrepancy_test, kolmogorov_smirnov
from fedsim.streams.series import OF_THE_DATA, OF_THE_MODEL, Blind, Detector, Observations, Shown, Windows
from fedsim.types import MissingPackageError


class Watch:
    """Base class of the parts `detector=...`: what is watched where, and how one series is.

    where: `server` watches the errors of all arrivals as one series; `clients` watches each client's own on its device, and
    raises the alarm when a share `votes` of the clients heard in the last `vote_rounds` rounds has flagged in these.
    watch: `errors` (0 or 1 an example) or `losses` (any scale: told in units of their first round's mean, x, as x / (1 + x)).
    Raises FedsimError where a value is out of range.
    """

    kind = "none"
    watches: tuple[str, ...] = OF_THE_MODEL

    def __init__(
        self, where: str, votes: float, vote_rounds: int, watch: str, observations: int, hand: int, margin: float
    ) -> None:
        self.where = require_choice("detector.where", where, ("server", "clients"))
        self.votes = require_number("detector.votes", votes, above=0, high=1)
        self.vote_rounds = require_int("detector.vote_rounds", vote_rounds, low=1)
        self.watch = require_choice("detector.watch", watch, self.watches)
        self.observations = require_int("detector.observations", observations, low=1)
        self.hand = require_int("detector.hand", hand, low=1)
        self.margin = require_number("detector.margin", margin, low=0)

    def open(self, seed: int, client: int) -> Detector:
        """A detector that was shown nothing yet."""
        raise NotImplementedError

    def seen(self) -> Observations:
        """What it makes of values."""
        return Observations(self.watch, self.observations, self.hand)


class NoWatch(Watch):
    """Nothing is watched; there is no alarm."""

    def __init__(self) -> None:
        super().__init__("server", 1.0, 1, "errors", 1, 1, 0.0)

    def open(self, seed: int, client: int) -> Detector:
        """One that never raises an alarm."""
        return Blind()


class RiverWatch(Watch):
    """A detector of river, which sees one observation after the other."""

    def open(self, seed: int, client: int) -> Detector:
        """As in Watch. Raises MissingPackageError where river is not installed."""
        try:
            from river import drift
        except ImportError as error:
            raise MissingPackageError(
                f"detector={self.kind} needs river; run `pip install 'fedsim-flower[river]'`"
            ) from error
        own = rng.derive_seed(seed, 0, client, "detector")
        return Shown(lambda: self.river(drift, own), self.seen(), self.margin, self.kept())

    def river(self, drift: Any, seed: int) -> Any:
        """A new detector of the module river.drift."""
        raise NotImplementedError

    def kept(self) -> int:
        """Of the observations before a change that is no alarm, how many still count."""
        return self.observations


class Adwin(RiverWatch):
    """Adaptive windowing (Bifet and Gavalda 2007, doi 10.1137/1.9781611972771.42): a window that is cut where its halves differ."""

    kind = "adwin"

    def __init__(
        self,
        where: str = "server",
        votes: float = 0.2,
        vote_rounds: int = 5,
        watch: str = "errors",
        observations: int = 50,
        hand: int = 1,
        margin: float = 0.1,
        delta: float = 0.002,
        clock: int = 5,
        grace_period: int = 20,
    ) -> None:
        """delta: chance of a cut without a change. clock: observations between tests. grace_period: before the first."""
        super().__init__(where, votes, vote_rounds, watch, observations, hand, margin)
        self.delta = require_number("detector.delta", delta, above=0, below=1)
        self.clock = require_int("detector.clock", clock, low=1)
        self.grace_period = require_int("detector.grace_period", grace_period, low=0)

    def river(self, drift: Any, seed: int) -> Any:
        """As in RiverWatch."""
        return drift.ADWIN(delta=self.delta, clock=self.clock, grace_period=self.grace_period)

    def kept(self) -> int:
        """Some rounds: the cut may lie before the newest ones, which alone would not say what is new."""
        return 4 * self.observations


class PageHinkley(RiverWatch):
    """Page's cumulative sums (1954, doi 10.1093/biomet/41.1-2.100) of how far observations lie above or below their mean."""

    kind = "page_hinkley"

    def __init__(
        self,
        where: str = "server",
        votes: float = 0.2,
        vote_rounds: int = 5,
        watch: str = "errors",
        observations: int = 5,
        hand: int = 10,
        margin: float = 0.1,
        delta: float = 0.1,
        threshold: float = 1.0,
        min_instances: int = 10,
    ) -> None:
        """delta: a rise that is let pass; threshold: what may lie beyond it in sum; min_instances: observations before a test."""
        super().__init__(where, votes, vote_rounds, watch, observations, hand, margin)
        self.delta = require_number("detector.delta", delta, low=0)
        self.threshold = require_number("detector.threshold", threshold, above=0)
        self.min_instances = require_int("detector.min_instances", min_instances, low=1)

    def river(self, drift: Any, seed: int) -> Any:
        """As in RiverWatch; nothing fades, since the sums begin anew after every change."""
        return drift.PageHinkley(
            min_instances=self.min_instances, delta=self.delta, threshold=self.threshold, alpha=1.0, mode="both"
        )


class Kswin(RiverWatch):
    """Kolmogorov-Smirnov windowing (Raab, Heusinger and Schleif 2020, arXiv 2007.05432): the newest against a draw of the older."""

    kind = "kswin"

    def __init__(
        self,
        where: str = "server",
        votes: float = 0.2,
        vote_rounds: int = 5,
        watch: str = "errors",
        observations: int = 5,
        hand: int = 10,
        margin: float = 0.1,
        alpha: float = 1e-4,
        window_size: int = 60,
        stat_size: int = 15,
    ) -> None:
        """alpha: level of a test, one an observation. window_size, stat_size: of observations, all and the newest."""
        super().__init__(where, votes, vote_rounds, watch, observations, hand, margin)
        self.alpha = require_number("detector.alpha", alpha, above=0, below=1)
        self.window_size = require_int("detector.window_size", window_size, low=4)
        self.stat_size = require_int("detector.stat_size", stat_size, low=2, high=self.window_size // 2)

    def river(self, drift: Any, seed: int) -> Any:
        """As in RiverWatch."""
        return drift.KSWIN(alpha=self.alpha, window_size=self.window_size, stat_size=self.stat_size, seed=seed)

    def kept(self) -> int:
        """All that a test looks at: a new one would be blind until its window is full."""
        return self.window_size - 1


class TwoSample(Watch):
    """A test of the last `recent` rounds against the `reference` rounds before them, once a round.

    test: `ks`, Kolmogorov-Smirnov on each feature, or `mmd`, a permutation test of the maximum mean discrepancy on all at once.
    level: chance of a false alarm in `horizon` rounds, shared evenly among these and among the features (Bonferroni).
    watch: `features` or `predictions` as well, of which at most `observations` examples a round enter, and any change is an alarm.
    """

    kind = "two_sample"
    watches = OF_THE_MODEL + OF_THE_DATA

    def __init__(
        self,
        where: str = "server",
        votes: float = 0.2,
        vote_rounds: int = 5,
        watch: str = "errors",
        observations: int = 20,
        hand: int = 5,
        margin: float = 0.1,
        test: str = "ks",
        level: float = 0.05,
        horizon: int = 200,
        reference: int = 10,
        recent: int = 3,
    ) -> None:
        super().__init__(where, votes, vote_rounds, watch, observations, hand, margin)
        self.test = require_choice("detector.test", test, ("ks", "mmd"))
        self.level = require_number("detector.level", level, above=0, below=1)
        self.horizon = require_int("detector.horizon", horizon, low=1)
        self.reference = require_int("detector.reference", reference, low=1)
        self.recent = require_int("detector.recent", recent, low=1)

    def open(self, seed: int, client: int) -> Detector:
        """As in Watch."""

        def differ(reference: np.ndarray, recent: np.ndarray, number: int) -> bool:
            return self._differ(reference, recent, rng.numpy_generator(seed, number, client, "detector"))

        return Windows(differ, self.seen(), self.margin, self.reference, self.recent)

    def _differ(self, reference: np.ndarray, recent: np.ndarray, draw: np.random.Generator) -> bool:
        level = self.level / self.horizon
        if self.test == "ks":
            return kolmogorov_smirnov(reference, recent)[1] <= level
        return discrepancy_test(reference, recent, level, draw)
