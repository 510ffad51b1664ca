"""A population whose clients see streams: what a client holds depends on the round, and what comes may drift."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.data.corruption import Corruption
from fedsim.data.dataset import Dataset
from fedsim.data.partition import Partition
from fedsim.data.population import Population
from fedsim.rng import SERVER
from fedsim.streams import order
from fedsim.streams.account import describe
from fedsim.streams.arrivals import Arrivals, Unstreamed
from fedsim.streams.drift import Drift
from fedsim.streams.guessing import ABSTAINS
from fedsim.streams.notes import Notes
from fedsim.streams.quality import Quality
from fedsim.streams.schedules import Schedule, Undrifted
from fedsim.streams.stream import Stream, rounds_of
from fedsim.types import ClientData, FedsimError

HELD_OUT = 2**40
"""Added to the numbers of held-out rows and of test rows, so that they share no draw with positions of a stream."""

COUNTS = ("labels-asked", "labels-known", "labels-guessed", "guesses-right")
"""Of the rows that come to a client in a round: labels bought, those known at once, guesses, and right ones among them."""

CLEANED = ("rows-cleaned", "rows-cleaned-wrong", "rows-wrong")
"""Of the rows that a client might train on in a round: those left out, wrong labels among them, and wrong labels among all."""


class StreamedPopulation(Population):
    """A Population whose training rows come as a stream. See Population for the other arguments.

    arrivals, schedule: of `streams.*` and `drift.*`. quality: of labels that cost, lack or lie (None: nothing is done). A row that
    comes is as `corruption` leaves it, and then drifts by how far its client is in the round in which it comes; it stays so in
    memory. Rows that come again (`streams.repeat`) drift anew.
    """

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        corruption: Corruption,
        holdout: float,
        seed: int,
        device: torch.device | str = "cpu",
        cache_mb: int = 256,
        *,
        arrivals: Arrivals,
        schedule: Schedule | Undrifted,
        quality: Quality | None = None,
    ) -> None:
        super().__init__(dataset, partition, corruption, holdout, seed, device, cache_mb)
        self.drift = Drift(schedule, dataset, seed, partition.num_clients)
        if corruption.indicator and self.drift.moves_inputs:
            raise FedsimError(
                f"drift.kind={schedule.kind} would move the inputs that say which values are missing, too; set "  # type: ignore[union-attr]
                "corruption.indicator=false"
            )
        self.quality = quality or Quality()
        self.stream = Stream(arrivals, seed, partition.sizes - self.holdout_sizes)
        if arrivals.order == "time":
            order.require_time(dataset.train.time, dataset.name)
            if self.drift.moves_prior:
                raise FedsimError(
                    "drift.kind=prior decides which rows come when, and so does time; set streams.order=random"
                )

    def training_data(self, client: int, round: int = 1) -> ClientData:
        """What the client trains on in this round: what is in its memory, ascending by when it came; may be none."""
        positions = self.stream.held(client, round)
        came = rounds_of(self.stream.course(client, round), positions)
        return self._streamed(client, round, positions, came)

    def arriving_data(self, client: int, round: int) -> ClientData:
        """What comes to the client in this round, to judge a model on before it is trained on.

        Labels are those that the device is told, whenever that is: corruption and drift are in them.
        """
        positions = self.stream.arriving(client, round)
        return self._streamed(client, round, positions, np.full(len(positions), round))

    def known_data(self, client: int, round: int) -> ClientData:
        """All of the client's examples whose label has come by the end of this round, whatever its memory; may be none."""
        return self._streamed(client, round, *self.stream.known(client, round))

    def noted(
        self, client: int, round: int, before: Notes, answer: Callable[[Tensor], np.ndarray], factor: float
    ) -> tuple[Notes, dict[str, int]]:
        """What a device writes down of what comes to it in this round, and COUNTS of it.

        before: its notes so far. answer: the model's probabilities (n, classes) of inputs (n, ...). factor: by which the budget of
        labels is raised for now.
        """
        quality, classes = self.quality, len(self.dataset.classes)
        data, positions = self.arriving_data(client, round), self.stream.arriving(client, round)
        answers = (
            answer(data.x) if quality.looks and len(positions) else np.empty((len(positions), classes), np.float32)
        )
        bought, purse = quality.labels.ask(self.seed, client, positions, answers, factor, before.purse)
        asked = np.concatenate([before.asked, positions[bought]]) if quality.labels.asks else before.asked
        labelled = self.stream.is_labelled(client, positions, round, self._asked(asked))
        bare = np.flatnonzero(~labelled)
        guesses = quality.unlabelled.guess(data.x[torch.from_numpy(bare).to(data.x.device)], answers[bare], classes)
        made = guesses != ABSTAINS
        notes = Notes(
            asked,
            np.concatenate([before.guessed, positions[bare][made]]),
            np.concatenate([before.guesses, guesses[made]]),
            np.concatenate([before.seen, positions]),
            np.concatenate([before.answers, answers]),
            purse,
        )
        right = 0
        if made.any():
            truth = self._truth(data, positions, np.full(len(positions), round))[bare]
            right = int((guesses == truth)[made].sum())
        counts = (int(asked.size - before.asked.size), int(labelled.sum()), int(made.sum()), right)
        return self._without_the_useless(client, round, notes), dict(zip(COUNTS, counts, strict=True))

    def learning_data(self, client: int, round: int, notes: Notes) -> tuple[ClientData, dict[str, int]]:
        """As `training_data` of a device with these notes: guesses where labels lack, less what looks wrong; and CLEANED of it."""
        positions = self.stream.held(client, round, self._asked(notes.asked), notes.guessed)
        came = rounds_of(self.stream.course(client, round), positions)
        data = self._streamed(client, round, positions, came)
        if not self.quality.unlabelled.guesses and not self.quality.cleaning.cleans:
            return data, {}
        y = data.y.cpu().numpy().copy()
        bare = ~self.stream.is_labelled(client, positions, round, self._asked(notes.asked))
        y[bare] = notes.guesses[np.searchsorted(notes.guessed, positions[bare])]
        wrong = y != self._truth(data, positions, came)
        kept = np.ones(len(positions), bool)
        seen = np.isin(positions, notes.seen)  # but for those of before a model that has since been given up
        answers = notes.answers[np.searchsorted(notes.seen, positions[seen])]
        kept[seen] = ~self.quality.cleaning.flag(y[seen], answers, round)
        index = torch.from_numpy(np.flatnonzero(kept)).to(data.x.device)
        counts = (int((~kept).sum()), int((~kept & wrong).sum()), int(wrong.sum()))
        learnt = ClientData(client, data.x[index], torch.from_numpy(y).to(data.y.device)[index])
        return learnt, dict(zip(CLEANED, counts, strict=True)) if self.quality.cleaning.cleans else {}

    def has_data(self, round: int) -> np.ndarray:
        """(num_clients,) bool: who has anything to train on in this round."""
        return self.stream.can_train(round)

    def arrived(self, round: int) -> np.ndarray:
        """(num_clients,) int64 examples that come to each client in this round."""
        return self.stream.counts(round) - self.stream.counts(round - 1)

    def holdout_data(self, client: int, round: int | None = None) -> ClientData:
        """What the client is judged on, in the concept that it is in in this round; None: in the old concept."""
        data = super().holdout_data(client)
        if round is None:
            return data
        amounts = self.drift.amount(np.full(len(data.x), client), round)
        return ClientData(client, *self.drift.apply(data.x, data.y, amounts, client, HELD_OUT + np.arange(len(data.x))))

    def test_split(self, amount: float) -> tuple[Tensor, Tensor]:
        """x (n, ...) preprocessed and y (n, ...) of the central test split in a concept, one of `drift.concepts`.

        Where drift decides which rows come, these are the rows that a share by class leaves.
        """
        test = self.dataset.test
        rows = np.arange(len(test))
        if self.drift.moves_prior:
            rows = rows[self.drift.coming(test.targets(rows).numpy(), amount, SERVER, HELD_OUT + rows)]
        x, y = (column.to(self.device) for column in test.take(rows))
        with torch.no_grad():
            x = self.preprocess(x)
        return self.drift.apply(x, y, np.full(len(rows), float(amount)), SERVER, HELD_OUT + rows)

    def describe(self, rounds: int) -> dict[str, int]:
        """Counts after so many rounds, see `fedsim.streams.account`, and rows whose time goes back, put in order of time."""
        return {**describe(self.stream, rounds), "rows_back_in_time": self._backwards}

    @cached_property
    def _backwards(self) -> int:
        if self.stream.arrivals.order != "time":
            return 0
        time = order.require_time(self.dataset.train.time, self.dataset.name)
        return order.backwards(time[np.asarray(self.partition.rows)], self.partition.offsets)

    def _streamed(self, client: int, round: int, positions: np.ndarray, came: np.ndarray) -> ClientData:
        """The examples at positions (n,) that came in rounds (n,) up to this one, as they were when they came."""
        data = super().training_data(client)
        index = torch.from_numpy(self._places(client, round, positions)).to(data.x.device)
        amounts = self.drift.amount(np.full(len(came), client), came)
        x, y = self.drift.apply(data.x[index], data.y[index], amounts, client, positions)
        return ClientData(client, x, y)

    def _asked(self, asked: np.ndarray) -> np.ndarray | None:
        """As Stream.held wants it."""
        return asked if self.quality.labels.asks else None

    def _truth(self, data: ClientData, positions: np.ndarray, came: np.ndarray) -> np.ndarray:
        """(n,) what the labels of data at positions (n,), which came in rounds (n,), would be were none of them noisy.

        A swap of classes is another concept, and true.
        """
        if not len(positions):
            return np.empty(0, np.int64)
        rows = self.rows(data.client)[0]
        places = self._places(data.client, int(came.max()), positions)
        y = self.dataset.train.targets(rows[places]).to(data.y.device)
        if self.drift.swaps:
            amounts = self.drift.amount(np.full(len(came), data.client), came)
            y = self.drift.apply(data.x, y, amounts, data.client, positions)[1]
        return np.asarray(y.cpu().numpy())

    def _without_the_useless(self, client: int, round: int, notes: Notes) -> Notes:
        """Of answers those alone that cleaning may still want: of rows that are held, or will be once their label comes."""
        if not self.quality.cleaning.cleans:
            return notes._replace(seen=notes.seen[:0], answers=notes.answers[:0])
        asked = self._asked(notes.asked)
        held = self.stream.held(client, round, asked, notes.guessed)
        useful = np.isin(notes.seen, held) | np.isin(notes.seen, self.stream.waiting(client, round, asked))
        return notes._replace(seen=notes.seen[useful], answers=notes.answers[useful])

    def _places(self, client: int, round: int, positions: np.ndarray) -> np.ndarray:
        """(n,) int64 which of the client's training rows are at the positions (n,), all of which have come by this round."""
        rows = self.rows(client)[0]
        if not len(positions):
            return positions
        if self.drift.moves_prior:
            rounds = np.arange(1, round + 1)
            amounts = self.drift.amount(np.full(round, client), rounds)
            labels, course = self.dataset.train.targets(rows).numpy(), self.stream.course(client, round)
            again = self.stream.arrivals.repeat
            drawn = order.by_weight(self.seed, client, labels, course, amounts, self.drift.weights, again=again)
            return drawn[positions]
        if self.stream.arrivals.order == "time":
            time = order.require_time(self.dataset.train.time, self.dataset.name)
            drawn = order.by_time(time[rows])
        else:
            drawn = order.at_random(self.seed, client, len(rows))
        return drawn[positions % len(rows)]


def check_streams(arrivals: Arrivals | Unstreamed, schedule: Schedule | Undrifted) -> None:
    """Refuse a drift of data that do not come in time."""
    if schedule.drifts and not arrivals.streamed:
        raise FedsimError(
            "data drift while they come, and with streams=none all of them are there from the start; set streams=steady (or "
            "poisson, bursts, day_night), or drift=none"
        )
