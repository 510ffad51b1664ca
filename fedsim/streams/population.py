"""A population whose clients see streams: what a client holds depends on the round, and what comes may drift."""

from __future__ import annotations

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
from fedsim.streams.schedules import Schedule, Undrifted
from fedsim.streams.stream import Stream, rounds_of
from fedsim.types import ClientData, FedsimError

HELD_OUT = 2**40
"""Added to the numbers of held-out rows and of test rows, so that they share no draw with positions of a stream."""


class StreamedPopulation(Population):
    """A Population whose training rows come as a stream. See Population for the other arguments.

    arrivals, schedule: of `streams.*` and `drift.*`. A row that comes is as `corruption` leaves it, and then drifts by how far
    its client is in the round in which it comes; it stays so in memory. Rows that come again (`streams.repeat`) drift anew.
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
    ) -> None:
        super().__init__(dataset, partition, corruption, holdout, seed, device, cache_mb)
        self.drift = Drift(schedule, dataset, seed, partition.num_clients)
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
