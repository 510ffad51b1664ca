"""What the server of a simulation hears of the labels on devices: who can train, and the counts that a run reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsim.streams.population import CLEANED, COUNTS, StreamedPopulation
from fedsim.types import FedsimError

ASKED, KNOWN, GUESSED, RIGHT = COUNTS
LEFT_OUT, LEFT_OUT_WRONG, WRONG = CLEANED


class Labelled:
    """Of one run. Without any of the parts `labels`, `unlabelled` and `cleaning` it has no columns.

    Like prequential figures these are the simulation's own measurement: no privacy mechanism covers them.
    """

    def __init__(self, population: StreamedPopulation) -> None:
        self.population = population
        self._ever = np.zeros(population.num_clients, np.int64)  # rows with a label or a guess, by client
        self._fresh = self._ever.copy()  # of the newest round
        self._sums = dict.fromkeys((*COUNTS, *CLEANED), 0)
        self._silent = False  # clients may send no numbers

    def hear(self, clients: Sequence[int], counts: Mapping[str, Sequence[float]]) -> None:
        """Take what the clients (k,) said of a round's arrivals: counts, (k,) each, by COUNTS."""
        self._fresh[:] = 0
        if not self.population.quality.acts or not len(clients):
            return
        own = {name: np.asarray(counts[name], np.int64) for name in COUNTS}
        self._fresh[np.asarray(clients, np.int64)] = own[KNOWN] + own[GUESSED]
        self._ever += self._fresh
        for name, values in own.items():
            self._sums[name] += int(values.sum())

    def can_train(self, round: int, hidden: bool = False) -> np.ndarray:
        """(num_clients,) bool: who has anything to train on in this round, after what came in it was heard of.

        hidden: whether that may not be known, where labels are bought or guessed by what the rows are: then all to whom anything
        came, and one with nothing to train on sends noise alone.
        """
        quality, stream = self.population.quality, self.population.stream
        if not quality.labels.asks and not quality.unlabelled.guesses:
            return self.population.has_data(round)
        if hidden:
            return stream.counts(round) > 0
        there = (self._fresh if stream.arrivals.memory == "once" else self._ever) > 0
        return there if quality.labels.asks else there | self.population.has_data(round)

    def columns(self, trained: Mapping[int, Mapping[str, float]] | None) -> dict[str, int | None]:
        """Of a round, for rounds.parquet. trained: what clients sent beside their updates; None where they may send no numbers.

        labels_asked, labels_guessed: so far. rows_cleaned: left out of this round's training.
        """
        quality = self.population.quality
        row: dict[str, int | None] = {}
        if quality.labels.asks:
            row["labels_asked"] = self._sums[ASKED]
        if quality.unlabelled.guesses:
            row["labels_guessed"] = self._sums[GUESSED]
        if quality.cleaning.cleans:
            self._silent = trained is None
            row["rows_cleaned"] = None if trained is None else self._clean(trained)
        return row

    def _clean(self, trained: Mapping[int, Mapping[str, float]]) -> int:
        found = {name: int(sum(own.get(name, 0) for own in trained.values())) for name in CLEANED}
        for name, number in found.items():
            self._sums[name] += number
        return found[LEFT_OUT]

    def describe(self, arrived: int) -> dict[str, Any]:
        """What summary.json says beside, or in the place of, what the stream has, of which `arrived` examples came.

        guesses_right: of those made. rows_cleaned: summed over rounds, of which rows_cleaned_wrong had a wrong label; rows_wrong:
        wrong labels among all that were held in those rounds; None where clients may send no numbers.
        """
        quality, sums = self.population.quality, self._sums
        told: dict[str, Any] = {}
        if quality.labels.asks:
            told |= {"labels": quality.labels.kind, "label_budget": quality.labels.budget}
            told |= {"labels_asked": sums[ASKED], "labels_known": sums[KNOWN], "labels_missing": arrived - sums[KNOWN]}
        if quality.unlabelled.guesses:
            told |= {"unlabelled": quality.unlabelled.kind}
            told |= {"labels_guessed": sums[GUESSED], "guesses_right": sums[RIGHT]}
        if quality.cleaning.cleans:
            names = {"rows_cleaned": LEFT_OUT, "rows_cleaned_wrong": LEFT_OUT_WRONG, "rows_wrong": WRONG}
            told |= {name: None if self._silent else sums[own] for name, own in names.items()}
        return told

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"ever": self._ever.copy(), "sums": dict(self._sums)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises FedsimError where it is something else."""
        try:
            self._ever = np.array(state["ever"], np.int64).reshape(len(self._ever))
            self._sums = {name: int(state["sums"][name]) for name in self._sums}
        except (KeyError, TypeError, ValueError) as error:
            raise FedsimError(
                "the checkpoint does not count the labels that clients have, so it is corrupt; start anew"
            ) from error
