"""Training by factors: held against torch's optimiser, one client at a time, and sums written out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.models import MLP
from fedsim.training import OBJECTIVES, ClientFailure, ClientHalf, ClientUpdate, LocalTraining, Trainer
from fedsim.training.arrays import model_arrays
from fedsim.training.chain import chain_of
from fedsim.training.execution import ONE_AT_A_TIME, Execution
from fedsim.training.factored import Coefficients, Factored, worth_it
from fedsim.training.group import Job
from fedsim.training.lockstep import Lockstep
from fedsim.training.stack import Stack
from fedsim.training.updates import Folded, Weigh
from fedsim.types import ClientData, Params

SIZES = (12, 5, 9, 1, 12, 7, 3)
PLAIN = LocalTraining(epochs=2, batch_size=4, lr=0.1)
WIDE, CLASSES = 90, 5

Data = Callable[[int], ClientData]


class Bare(nn.Sequential):
    """Without biases, and two layers that no ReLU parts."""

    def __init__(self) -> None:
        layers = (nn.Linear(80, 80, bias=False), nn.Linear(80, 90), nn.ReLU(), nn.Linear(90, 5, bias=False))
        super().__init__(nn.Flatten(), nn.Linear(90, 80, bias=False), nn.ReLU(), *layers)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP((WIDE,), CLASSES, hidden=(80, 70)),
    "bare": Bare,
}


def model_of(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name]().to(dtype)


def data_of(dtype: torch.dtype = torch.float64, targets: int = CLASSES) -> Data:
    def one(client: int) -> ClientData:
        draw = rng.generator(2, 0, client, "test data")
        x = torch.randn(SIZES[client], 2, WIDE // 2, generator=draw).flatten(1).to(dtype)
        return ClientData(client, x, torch.randint(targets, (SIZES[client],), generator=draw))

    return one


def spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that were made by factors: how many clients made each."""
    made: list[int] = []
    real = Factored.forward

    def forward(self: Factored, x: Tensor, step: int, active: int) -> Tensor:
        made.append(active)
        return real(self, x, step, active)

    monkeypatch.setattr(Factored, "forward", forward)
    return made


def trainer_of(model: nn.Module, settings: LocalTraining, execution: Execution, **more: Any) -> Trainer:
    return Trainer(model, OBJECTIVES["classification"], settings, ClientHalf(), 11, execution=execution, **more)


def trained(trainer: Trainer, data: Data, rounds: int = 3) -> Params:
    """Federated averaging over all clients."""
    arrays = {n: a.clone() for n, a in model_arrays(trainer.model).items()}
    for round in range(1, rounds + 1):
        total = {n: torch.zeros_like(a) for n, a in arrays.items()}
        for update in trainer.train(arrays, range(len(SIZES)), data, lambda client: {}, round):
            assert isinstance(update, ClientUpdate)
            total = {n: total[n] + update.num_examples * a for n, a in update.arrays.items()}
        arrays = {n: a / sum(SIZES) for n, a in total.items()}
    return arrays


def gap(left: Params, right: Params) -> float:
    apart = sum(float((left[n].double() - a.double()).square().sum()) for n, a in right.items())
    return (apart / sum(float(a.double().square().sum()) for a in right.values())) ** 0.5


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_coefficients_are_those_of_torchs_sgd(momentum: float, decay: float) -> None:
    settings = LocalTraining(lr=0.2, momentum=momentum, weight_decay=decay)
    weight = torch.tensor([1.7], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.2, momentum=momentum, weight_decay=decay)
    gradients = [0.3, -1.1, 0.7, 2.0, -0.4]
    table = Coefficients(settings, 0.2, len(gradients)).table
    for step, gradient in enumerate(gradients):
        base, taken = table[step]
        assert base * 1.7 - sum(c * g for c, g in zip(taken, gradients, strict=False)) == pytest.approx(weight.item())
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    base, taken = table[-1]
    assert base * 1.7 - sum(c * g for c, g in zip(taken, gradients, strict=True)) == pytest.approx(weight.item())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        replace(PLAIN, batch_size=None),
        replace(PLAIN, max_steps=3),
        replace(PLAIN, weight_decay=0.05),
        replace(PLAIN, momentum=0.9),
        replace(PLAIN, momentum=0.9, weight_decay=0.01, lr_decay=0.7),
    ],
    ids=["plain", "whole", "max_steps", "weight_decay", "momentum", "all"],
)
def test_factors_are_one_client_at_a_time(name: str, settings: LocalTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    made = spied(monkeypatch)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        both = [
            trained(trainer_of(model_of(name, dtype), settings, way), data_of(dtype))
            for way in (ONE_AT_A_TIME, Execution("lockstep", 7))
        ]
        assert gap(both[1], both[0]) <= tolerance, f"{dtype}: {gap(both[1], both[0]):.1e}"
        assert gap(both[0], model_arrays(model_of(name, dtype))) > 1e-3, "it must have learnt something"
    assert len(made) == 2 * 3 * settings.steps(max(SIZES)) and max(made) == 7
    assert min(made) < 7 or settings.batch_size is None  # clients with fewer steps are left behind


def test_regression_too(monkeypatch: pytest.MonkeyPatch) -> None:
    made = spied(monkeypatch)
    model = MLP((WIDE,), 1, hidden=(80, 70)).double()

    def data(client: int) -> ClientData:
        one = data_of()(client)
        return one._replace(y=one.x.sum(1))

    both = []
    for way in (ONE_AT_A_TIME, Execution("lockstep", 7)):
        trainer = trainer_of(copy.deepcopy(model), replace(PLAIN, lr=0.01), way)
        trainer.objective = OBJECTIVES["regression"]
        both.append(trained(trainer, data))
    assert made and gap(*both) < 1e-9


def sums(
    trainer: Trainer, data: Data, weight: float = 1.0
) -> tuple[list[Folded], list[ClientUpdate], list[ClientFailure]]:
    """One round, whose updates are weighed by the number of examples times a weight."""
    start = {n: a.clone() for n, a in model_arrays(trainer.model).items()}
    asked = start, range(len(SIZES)), data, lambda client: {}, 1
    found = list(trainer.train_folded(*asked, lambda update: weight * update.num_examples))  # type: ignore[arg-type]
    kinds = (Folded, ClientUpdate, ClientFailure)
    return tuple([one for one in found if isinstance(one, kind)] for kind in kinds)  # type: ignore[return-value]


@pytest.mark.parametrize("hidden", [(80, 70), (4, 3)], ids=["factors", "weights"])
def test_a_folded_sum_is_the_sum_of_updates(hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether clients train by factors or on weights of their own; five train together, then two."""
    made = spied(monkeypatch)
    torch.manual_seed(4)
    model = MLP((WIDE,), CLASSES, hidden=hidden).double()
    folded, others, failures = sums(trainer_of(model, PLAIN, Execution("lockstep", 5)), data_of())
    assert bool(made) is (hidden[0] > 4) and not failures and not others
    assert [len(one.updates) for one in folded] == [5, 2] and not any(u.arrays for one in folded for u in one.updates)
    alone = trainer_of(model, PLAIN, ONE_AT_A_TIME)
    start = {n: a.clone() for n, a in model_arrays(model).items()}
    total = {n: torch.zeros_like(a) for n, a in start.items()}
    for update in alone.train(start, range(len(SIZES)), data_of(), lambda client: {}, 1):
        assert isinstance(update, ClientUpdate)
        total = {n: total[n] + update.num_examples * a for n, a in update.arrays.items()}
        (same,) = [u for one in folded for u in one.updates if u.client == update.client]
        assert same.metrics == pytest.approx(update.metrics) and same.num_steps == update.num_steps
    assert gap({n: folded[0].arrays[n] + folded[1].arrays[n] for n in total}, total) < 1e-12


@pytest.mark.parametrize("hidden", [(80, 70), (4, 3)], ids=["factors", "weights"])
def test_a_client_that_diverges_is_in_no_sum(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    model = MLP((WIDE,), CLASSES, hidden=hidden).double()

    def spoilt(client: int) -> ClientData:
        data = data_of()(client)
        return data._replace(x=data.x * 1e200) if client == 2 else data

    (folded,), _, (failure,) = sums(trainer_of(model, PLAIN, Execution("lockstep", 7)), spoilt)
    assert failure.client == 2 and "not finite" in failure.reason
    assert [update.client for update in folded.updates] == [0, 1, 3, 4, 5, 6]
    assert all(bool(torch.isfinite(array).all()) for array in folded.arrays.values())


def test_clients_without_weight_keep_their_arrays() -> None:
    """Whoever adds them up says that zeros have no mean, and needs to see them for it."""
    folded, updates, _ = sums(trainer_of(model_of("mlp"), PLAIN, Execution("lockstep", 7)), data_of(), weight=0.0)
    assert not folded and [update.client for update in updates] == list(range(7))
    assert all(update.arrays.keys() == model_arrays(model_of("mlp")).keys() for update in updates)


def test_huge_factors_of_finite_weights_are_looked_at() -> None:
    """Their norms bound nothing in float32, and the weights are finite all the same."""
    torch.manual_seed(4)
    model = MLP((WIDE,), CLASSES, hidden=(80, 70))
    stack = Stack(model, 1)
    chain = chain_of(stack, model)
    assert chain is not None
    start = {n: torch.zeros_like(a[0]) for n, a in stack.arrays.items()}
    factored = Factored(chain, [start] * 4, [1] * 4, [2], Coefficients(PLAIN, 0.1, 1), lambda g: g)
    for layer in factored.layers:
        layer.inputs[1, 0, 0] = layer.gradients[1, 1, 0] = 1e30  # of two rows: their product is in no weight
    factored.layers[0].inputs[2, 0, 0] = factored.layers[0].gradients[2, 0, 0] = 1e30
    factored.layers[0].inputs[3, 0, 0] = float("nan")
    assert factored.finite().tolist() == [True, True, False, False]


def test_runs_that_train_together_keep_their_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """As packed sweeps do it: four clients of each of two runs, at learning rates and from models of their own."""
    made = spied(monkeypatch)
    models = [model_of("mlp"), model_of("mlp")]
    with torch.no_grad():
        for weight in models[1].parameters():
            weight.mul_(1.1)
    engines = []
    for model, lr in zip(models, (0.1, 0.03), strict=True):
        parts = (model, OBJECTIVES["classification"], replace(PLAIN, lr=lr), ClientHalf(), 11, 1, None)
        engines.append(Lockstep(Stack(model, 8), *parts))
    starts = [{n: a.clone() for n, a in model_arrays(model).items()} for model in models]
    jobs = [
        Job(engine.recipe, start, client, data_of(), lambda client: {}, 1)
        for engine, start in zip(engines, starts, strict=True)
        for client in (0, 4, 2, 5)
    ]
    together = engines[0].train_jobs(jobs)
    assert made[0] == 8
    for job, update in zip(jobs, together, strict=True):
        alone = trainer_of(models[0], job.recipe.settings, ONE_AT_A_TIME)
        (expected,) = alone.train(job.received, [job.client], data_of(), lambda client: {}, 1)
        assert isinstance(update, ClientUpdate) and isinstance(expected, ClientUpdate)
        assert gap(update.arrays, expected.arrays) < 1e-9


@pytest.mark.parametrize("hidden", [(80, 70), (4, 3)], ids=["factors", "weights"])
def test_runs_that_train_together_are_folded_each_by_itself(
    hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one whose clients weigh nothing, and one that wants each by itself; whether on factors or on weights."""
    made = spied(monkeypatch)
    torch.manual_seed(4)
    model = MLP((WIDE,), CLASSES, hidden=hidden).double()
    engine = Lockstep(Stack(model, 16), *trainer_of(model, PLAIN, ONE_AT_A_TIME).parts)
    starts = [{n: a * scale for n, a in model_arrays(model).items()} for scale in (1, 1.1, 0.9, 1.2)]
    weights: list[Weigh | None] = [lambda u: u.num_examples, lambda u: 2.0, lambda u: 0.0, None]

    def spoilt(client: int) -> ClientData:
        data = data_of()(client)
        return data._replace(x=data.x * 1e200) if client == 4 else data

    jobs = [
        Job(engine.recipe, start, client, spoilt if run == 1 else data_of(), lambda client: {}, 1, weigh)
        for client in (4, 0, 2, 5)
        for run, (start, weigh) in enumerate(zip(starts, weights, strict=True))
    ]
    by_itself = engine.train_jobs([job._replace(weigh=None) for job in jobs])
    alone = [
        one._replace(arrays={n: a.clone() for n, a in one.arrays.items()}) if isinstance(one, ClientUpdate) else one
        for one in by_itself
    ]
    found = engine.train_jobs(jobs)
    assert bool(made) is (hidden[0] > 4)
    for run, first in ((0, 0), (1, 5)):  # the first client of run 1 fails
        folded, weigh = found[first], weights[run]
        assert isinstance(folded, Folded) and weigh is not None
        own = [update for update in alone[run::4] if isinstance(update, ClientUpdate)]
        assert [update.client for update in folded.updates] == [update.client for update in own]
        assert not any(update.arrays for update in folded.updates)
        total = {n: sum(weigh(update) * update.arrays[n] for update in own) for n in starts[0]}
        assert gap(folded.arrays, total) < 1e-12  # type: ignore[arg-type]
    assert isinstance(found[1], ClientFailure) and [place for place, one in enumerate(found) if one is None] == [
        4,
        8,
        9,
        12,
        13,
    ]
    for place in (*range(2, 16, 4), *range(3, 16, 4)):
        update, expected = found[place], alone[place]
        assert isinstance(update, ClientUpdate) and isinstance(expected, ClientUpdate)
        assert gap(update.arrays, expected.arrays) < 1e-12


def test_a_sum_reads_what_its_own_clients_did_and_no_more() -> None:
    """Neither rows of steps that a client did not make, nor the model of a run that is not in it."""
    stack = Stack(MLP((WIDE,), CLASSES, hidden=(80, 70)), 1)
    chain = chain_of(stack, MLP((WIDE,), CLASSES, hidden=(80, 70)))
    assert chain is not None
    ours, others = ({n: torch.full_like(a[0], value) for n, a in stack.arrays.items()} for value in (1.0, float("nan")))
    factored = Factored(chain, [ours, others, ours], [2, 1, 1], [2, 2], Coefficients(PLAIN, 0.1, 2), lambda g: g)
    for layer in factored.layers:
        layer.inputs[1:, 2:] = layer.gradients[1:, 2:] = float("nan")
    total = factored.total(torch.tensor([1.0, 0.0, 2.0]))
    assert all(bool((array == 3).all()) for array in total.values())


def test_factors_are_for_few_rows() -> None:
    """2NN: 784 * 200 + 200 * 200 + 200 * 10 numbers, and 984 + 400 + 210 a row: up to 124 rows."""
    model = MLP((784,), 10)
    chain = chain_of(Stack(model, 1), model)
    assert chain is not None and worth_it(chain, 124) and not worth_it(chain, 125)
