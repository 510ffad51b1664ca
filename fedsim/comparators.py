"""What the models of a stream are held against: the best fixed model in hindsight, and one trained anew on all that came so far.

Both are trained in one place on what devices would never send. They are the simulation's own measurement: nothing that is learnt
of them reaches a device, and no promise of privacy covers them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedsim import flower, rng
from fedsim.judging import Judge
from fedsim.rounds import EvaluationPlan, Row
from fedsim.streams.population import StreamedPopulation
from fedsim.streams.prequential import Prequential
from fedsim.streams.regret import Regret, regret
from fedsim.training import ClientHalf, LocalTraining, Trainer
from fedsim.training.arrays import load_arrays
from fedsim.training.evaluation import finite_or_none
from fedsim.training.updates import ClientFailure
from fedsim.types import ClientData, FedsimError, Params

START, LAST, ALL = "start", "last", "all"
"""The fixed models: those that the run began and ended with, and one trained on all that came."""


@dataclass
class Comparators:
    """Judged on the same arrivals as the run's own models, example by example.

    plan: the keys `evaluation.regret*`. trainer: the run's, for its model and objective. start: the arrays that every training
    begins with, the run's own.
    """

    plan: EvaluationPlan
    population: StreamedPopulation
    judge: Judge
    trainer: Trainer
    start: Params
    best: str | None = field(default=None, init=False)
    _offline: Params = field(init=False)
    _figures: Prequential = field(init=False)
    _regret: float = field(default=0.0, init=False)
    _unheard: list[list[int]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._offline, self._figures = self.start, Prequential(self.plan.fading, self.plan.window)

    def row(
        self,
        round: int,
        clients: np.ndarray,
        played: float | None,
        interruptible: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Row:
        """The columns of a round, those of the fixed model yet unknown.

        clients: (k,) whose arrivals were judged. played: the summed loss of the run's model on these, None where nothing came.
        offline_accuracy, offline_loss: as the prequential ones, with the same fading, of the offline model that there is before the
        round; regret_offline: the sum of the losses of the run's models up to this round, less that of the offline ones'.
        """
        unheard = np.setdiff1d(np.flatnonzero(self.population.arrived(round)), clients)
        self._unheard += [[round, client] for client in unheard.tolist()]
        row: Row = {}
        if "offline" in self.plan.regret:
            with interruptible():
                row |= self._against_offline(round, played)
        if "fixed" in self.plan.regret:
            row |= dict.fromkeys(("fixed_accuracy", "fixed_loss", "regret_fixed"))
        return row

    def _against_offline(self, round: int, played: float | None) -> Row:
        if round == 2 or (round > 1 and (round - 1) % self.plan.regret_every == 0):
            known = (self.population.known_data(client, round - 1) for client in range(self.population.num_clients))
            self._offline = self._trained(known, round - 1)
        losses, hits = self._losses(self._offline, self._arrivals(round))
        self._figures.update(np.zeros(1, np.int64), np.array([len(losses)]), losses, _known(hits))
        if played is not None:
            self._regret += played - float(losses.sum())
        columns = self._figures.columns()
        told = {f"offline_{name}": columns[f"prequential_{name}"] for name in ("accuracy", "loss")}
        return told | {"regret_offline": finite_or_none(self._regret)}

    @property
    def offline_accuracy(self) -> float | None:
        """The share of all targets so far that the offline models had right; None where there are none, or nothing can be right."""
        accuracy = self._figures.columns()["cumulative_accuracy"]
        return None if accuracy is None else float(accuracy)

    def in_hindsight(self, rows: Sequence[Row], last: Params) -> None:
        """Fill in the columns of the fixed model in the rows of all rounds, from the first one on.

        last: the run's model after them. fixed_accuracy, fixed_loss: as the prequential ones, of the fixed model that lost least
        over all rounds (`best`); regret_fixed: see `fedsim.streams.regret.regret`.
        """
        if "fixed" not in self.plan.regret:
            return
        arrivals = [self._arrivals(row["round"]) for row in rows]
        trained = self._trained((data for there in arrivals for data in there), 0)
        models = {START: self.start, LAST: last, ALL: trained}
        judged = {name: [self._losses(arrays, there) for there in arrivals] for name, arrays in models.items()}
        found = _regret(rows, {name: [losses.sum() for losses, _ in of] for name, of in judged.items()})
        self.best = found.best
        figures = Prequential(self.plan.fading, self.plan.window)
        for row, (losses, hits), series in zip(rows, judged[self.best], found.series.tolist(), strict=True):
            figures.update(np.zeros(1, np.int64), np.array([len(losses)]), losses, _known(hits))
            columns = figures.columns()
            row |= {f"fixed_{name}": columns[f"prequential_{name}"] for name in ("accuracy", "loss")}
            row["regret_fixed"] = finite_or_none(series)

    def _arrivals(self, round: int) -> list[ClientData]:
        """What came in a round and was judged, clients ascending."""
        unheard = {client for when, client in self._unheard if when == round}
        there = np.flatnonzero(self.population.arrived(round)).tolist()
        return [self.population.arriving_data(client, round) for client in there if client not in unheard]

    def _losses(self, arrays: Params, arrivals: list[ClientData]) -> tuple[np.ndarray, np.ndarray]:
        """(n,) losses and (n,) hits of their targets under a model, client by client as on devices."""
        load_arrays(self.judge.model, arrays)
        found = [self.judge.judged(data) for data in arrivals]
        losses, hits = (
            np.concatenate([np.empty(0), *part])
            for part in ([one.losses for one in found], [one.hits for one in found])
        )
        return losses, hits

    def _trained(self, data: Iterable[ClientData], number: int) -> Params:
        """A model trained in one place, from the start. number: by which its draws are named."""
        parts = [one for one in data if len(one.x)]
        if not parts:
            return self.start
        pooled = ClientData(rng.SERVER, torch.cat([one.x for one in parts]), torch.cat([one.y for one in parts]))
        plan = self.plan
        settings = LocalTraining(epochs=plan.regret_epochs, batch_size=plan.regret_batch_size, lr=plan.regret_lr)
        own = Trainer(
            self.trainer.model,
            self.trainer.objective,
            settings,
            ClientHalf(),
            self.trainer.seed,
            self.trainer.smallest_batch,
        )
        (update,) = own.alone().train(self.start, [rng.SERVER], lambda _: pooled, lambda _: {}, number)
        if isinstance(update, ClientFailure):
            raise FedsimError(
                f"a model to compare with could not be trained ({update.reason}); lower evaluation.regret_lr, or set "
                "evaluation.regret=[]"
            )
        return {name: array.detach().cpu().clone() for name, array in update.arrays.items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "offline": flower.exact_record(self._offline),
            "figures": self._figures.state(),
            "regret": self._regret,
            "unheard": np.array(self._unheard, dtype=np.int64).reshape(-1, 2),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. Raises FedsimError where it is something else."""
        try:
            self._offline = flower.from_record(state["offline"])
            self._figures.load_state(state["figures"])
            self._regret, self._unheard = float(state["regret"]), state["unheard"].tolist()
        except (KeyError, AttributeError, ValueError) as error:
            raise FedsimError(
                "the checkpoint does not hold what evaluation.regret compares with, so it is corrupt; start anew"
            ) from error


def _regret(rows: Sequence[Row], losses: dict[str, list[float]]) -> Regret:
    """Of the run's models against the fixed ones. losses: by name, a sum a round."""
    played = np.array([row["round_loss"] * row["arrived"] if row["arrived"] else 0.0 for row in rows])
    return regret(played, losses, lambda of: np.array(of))


def _known(hits: np.ndarray) -> np.ndarray | None:
    """None of a regression, in which nothing can be right."""
    return None if np.isnan(hits).any() else hits
