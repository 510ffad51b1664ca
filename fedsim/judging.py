"""How a node judges models: clients on their own held-out data, and a shard of the central test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedsim import flower
from fedsim.data.population import Population
from fedsim.streams.population import StreamedPopulation
from fedsim.training.arrays import load_arrays
from fedsim.training.evaluation import (
    SECTION,
    Forward,
    Tally,
    metrics_of_tally,
    mixes_rows,
    predict,
    tally_batches,
    tally_of,
)
from fedsim.training.updates import ClientFailure
from fedsim.types import ClientData, Params

PACK_BYTES = 32 * 2**20
"""Of held-out data that run as one."""

Figures = dict[str, float]
"""Of one client: num-examples (targets), loss and, but for regression, accuracy. A model that has diverged has a loss of NaN."""


class Judged(NamedTuple):
    """(n,) of each target: its loss, whether it was hit, 1 or 0 (NaN in a regression), and its predicted class (none there)."""

    losses: np.ndarray
    hits: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class Judge:
    """A model to load arrays into, and the data to judge it on. batch_size: examples a forward pass."""

    model: nn.Module
    population: Population
    batch_size: int

    def clients(
        self, clients: Sequence[int], received: Params, arrays_of: Callable[[int], Params], split: str
    ) -> tuple[dict[int, Figures], list[ClientFailure]]:
        """Each client's figures (those without targets have none), and the clients that raised.

        arrays_of: the arrays that a client uses; `received` itself where it has none of its own. split: `holdout` for its own
        held-out data, `test` for the central test split. Held-out data of clients that share `received` run together.
        """
        found: dict[int, Figures | None] = {}
        failed: dict[int, ClientFailure] = {}
        sharing: list[int] = []
        apart, loaded = split == "test" or mixes_rows(self.model), None
        for client in clients:
            try:
                arrays = arrays_of(client)
                if arrays is received and not apart:
                    sharing.append(client)
                    continue
                if arrays is not loaded:
                    load_arrays(self.model, arrays)
                    loaded = arrays
                found[client] = self._alone(self._data(client, split), split)
            except Exception as error:  # as in training: what one client's data raise must not silence the others
                failed[client] = _failure(client, error)
        if sharing:
            load_arrays(self.model, received)
        for pack in self._packs(sharing, failed):
            found |= self._together(pack, failed)
        judged = {client: figures for client in clients if (figures := found.get(client)) is not None}
        return judged, [failed[client] for client in clients if client in failed]

    def central(self, arrays: Params) -> dict[str, float | None]:
        """Metrics of given arrays on the whole central test split."""
        return metrics_of_tally(self.shard(arrays, 0, len(self.population.dataset.test)))

    def shards(self, number: int) -> list[tuple[int, int]]:
        """The rows (start, stop) of the central test split in at most `number` shards of whole batches."""
        rows = len(self.population.dataset.test)
        batches = math.ceil(rows / self.batch_size)
        number = min(number, batches)
        ends = [batches * place // number * self.batch_size for place in range(number)] + [rows]
        return list(pairwise(ends))

    def shard(self, arrays: Params, start: int, stop: int) -> Tally:
        """The sums of each batch of these rows of the central test split."""
        load_arrays(self.model, arrays)
        dataset, preprocess = self.population.dataset, self.population.preprocess
        x, y = dataset.test.x[start:stop], dataset.test.y[start:stop]
        return tally_batches(self.model, x, y, dataset.task, dataset.num_outputs, self.batch_size, preprocess)

    def in_concept(self, arrays: Params, amount: float) -> dict[str, float | None]:
        """Metrics on the central test split as a drift by `amount` leaves it."""
        assert isinstance(self.population, StreamedPopulation)
        load_arrays(self.model, arrays)
        dataset, (x, y) = self.population.dataset, self.population.test_split(amount)
        return metrics_of_tally(
            tally_batches(self.model, x, y, dataset.task, dataset.num_outputs, self.batch_size, None)
        )

    def arriving(self, client: int, round: int, arrays: Params) -> Judged:
        """The client's targets that come in this round, under given arrays."""
        assert isinstance(self.population, StreamedPopulation)
        load_arrays(self.model, arrays)
        return self.judged(self.population.arriving_data(client, round))

    def judged(self, data: ClientData) -> Judged:
        """The targets of these examples, under the model as it is loaded."""
        if len(data.x) == 0:
            return Judged(np.empty(0), np.empty(0), np.empty(0, np.int64))
        found = predict(self.model, data.x, data.y, self.population.dataset.task, self.batch_size)
        losses = found.loss.double().numpy()
        if found.target is None or found.predicted is None:
            return Judged(losses, np.full(len(losses), np.nan), np.empty(0, np.int64))
        return Judged(losses, (found.predicted == found.target).double().numpy(), found.predicted.numpy())

    @torch.no_grad()
    def answers(self, arrays: Params, x: Tensor) -> np.ndarray:
        """(n, classes) float32 probabilities of preprocessed inputs (n, ...)."""
        load_arrays(self.model, arrays)
        self.model.eval()
        run = Forward(self.model)
        return torch.cat([F.softmax(run(part), -1) for part in x.split(self.batch_size)]).float().cpu().numpy()

    def _data(self, client: int, split: str) -> ClientData:
        if split == "holdout":
            return self.population.holdout_data(client)
        test = self.population.dataset.test
        return ClientData(client, test.x, test.y)

    def _packs(self, clients: Sequence[int], failed: dict[int, ClientFailure]) -> Iterator[list[ClientData]]:
        """Clients' held-out data, about SECTION batches or PACK_BYTES in memory at a time."""
        pack: list[ClientData] = []
        rows, size = 0, 0
        for client in clients:
            try:
                data = self._data(client, "holdout")
            except Exception as error:
                failed[client] = _failure(client, error)
                continue
            if len(data.x):
                pack.append(data)
                rows, size = rows + len(data.x), size + data.x.nbytes
            if rows >= SECTION * self.batch_size or size >= PACK_BYTES:
                yield pack
                pack, rows, size = [], 0, 0
        if pack:
            yield pack

    def _together(self, pack: list[ClientData], failed: dict[int, ClientFailure]) -> dict[int, Figures | None]:
        """The loaded model on all of these as one; where that raises, one by one, so that only who raises fails."""
        try:
            figures = self._figures(pack, None)
            return {data.client: own for data, own in zip(pack, figures, strict=True)}
        except Exception:
            found: dict[int, Figures | None] = {}
            for data in pack:
                try:
                    found[data.client] = self._alone(data, "holdout")
                except Exception as error:
                    failed[data.client] = _failure(data.client, error)
            return found

    def _alone(self, data: ClientData, split: str) -> Figures | None:
        preprocess = self.population.preprocess if split == "test" else None
        return self._figures([data], preprocess)[0] if len(data.x) else None

    def _figures(self, pack: list[ClientData], preprocess: nn.Module | None) -> list[Figures | None]:
        """Of the loaded model for each; None where all targets are to be ignored."""
        dataset = self.population.dataset
        x, y = (
            (pack[0].x, pack[0].y)
            if len(pack) == 1
            else (torch.cat([d.x for d in pack]), torch.cat([d.y for d in pack]))
        )
        found = predict(self.model, x, y, dataset.task, self.batch_size, preprocess)
        owner = np.repeat(np.arange(len(pack)), [len(data.x) for data in pack])[found.row.numpy()]
        tally = tally_of(found, owner, len(pack), dataset.num_outputs)
        return [_figures_of(tally, place) for place in range(len(pack))]


def tally_record(tally: Tally) -> ArrayRecord:
    """As it travels."""
    return flower.exact_record({name: torch.from_numpy(sums) for name, sums in tally._asdict().items()})


def tally_from(record: ArrayRecord) -> Tally:
    """As it was."""
    return Tally(**{name: sums.numpy() for name, sums in flower.from_record(record).items()})


def _figures_of(tally: Tally, place: int) -> Figures | None:
    size = tally.size[place]
    if size == 0:
        return None
    loss = float(tally.loss[place] / size)
    figures = {flower.NUM_EXAMPLES: int(size), "loss": loss if math.isfinite(loss) else math.nan}
    return figures if len(tally.correct) == 0 else {**figures, "accuracy": float(tally.correct[place] / size)}


def _failure(client: int, error: Exception) -> ClientFailure:
    return ClientFailure(client, f"in evaluation, {type(error).__name__}: {error}")
