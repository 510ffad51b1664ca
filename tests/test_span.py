"""DP-SGD whose first layer's noise is drawn in the span of a client's inputs: the same distribution, however it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import chi2, kstest
from torch import Tensor, nn

from fedsim import rng
from fedsim.algorithms.fedprox import Proximal
from fedsim.models import CNN, MLP, Linear
from fedsim.training import OBJECTIVES, ClientFailure, ClientHalf, ClientUpdate, Device, LocalTraining, Trainer
from fedsim.training.arrays import model_arrays
from fedsim.training.dpsgd import DPSGD, PrivateClient
from fedsim.training.execution import ONE_AT_A_TIME, Execution
from fedsim.training.group import Job
from fedsim.training.lockstep import Lockstep
from fedsim.training.objectives import classification
from fedsim.training.private_span import InSpans
from fedsim.training.span import FirstLayer, first_layer, span_of
from fedsim.training.stack import Stack
from fedsim.training.updates import Folded
from fedsim.types import ClientData, Params

WIDE, CLASSES = 40, 3
SIZES = (9, 5, 10, 1, 7, 3)
TOGETHER = Execution("lockstep", 6)
PLAIN = LocalTraining(epochs=2, batch_size=4, lr=0.3)


def noise(size: int, std: float, round: int, client: int, purpose: str) -> Tensor:
    return torch.randn(size, generator=rng.generator(5, round, client, purpose)) * std


def coins(size: int, round: int, client: int, purpose: str) -> Tensor:
    return torch.rand(size, dtype=torch.float64, generator=rng.generator(5, round, client, purpose))


def seldom(size: int, round: int, client: int, purpose: str) -> Tensor:
    """A batch of one or two rows now and then; of some clients none in a round."""
    return coins(size, round, client, purpose) * 4


def rule(z: float = 0.7, **keys: Any) -> DPSGD:
    return DPSGD(**{"noise_multiplier": lambda client: z, "noise": noise, "chances": coins, "clip_norm": 0.7, **keys})


def model_of(name: str = "mlp") -> nn.Module:
    torch.manual_seed(4)
    made = {
        "mlp": lambda: MLP((WIDE,), CLASSES, hidden=(8, 5)),
        "flattening": lambda: MLP((4, 10), CLASSES, hidden=(8,)),
        "linear": lambda: Linear((WIDE,), CLASSES),
        "no bias": lambda: nn.Sequential(nn.Linear(WIDE, 7, bias=False), nn.ReLU(), nn.Linear(7, CLASSES)),
        "one number": lambda: nn.Linear(WIDE, 1),
    }
    return made[name]().double()


class Grown(ClientHalf):
    """Every client begins at arrays of its own."""

    def initial(self, received: Params, state: Params) -> Params:
        return {name: array * (1 + state.get("rounds", torch.zeros(())) / 10) for name, array in received.items()}

    def finish(self, device: Device, steps: int, lr: float) -> Params:
        return {"rounds": device.state.get("rounds", torch.zeros(())) + device.data.client}


def data_of(name: str = "mlp", repeats: bool = False) -> Callable[[int], ClientData]:
    def of(client: int) -> ClientData:
        draw = rng.generator(1, 0, client, "test data")
        x = torch.randn(SIZES[client], WIDE, dtype=torch.float64, generator=draw)
        y = torch.randint(CLASSES, (SIZES[client],), generator=draw)
        if repeats:  # rows that say nothing new, and one of zeros
            x[1:] = x[torch.arange(len(x) - 1) // 2]
            x[-1] = 0
        if name == "flattening":
            x = x.view(-1, 4, 10)
        return ClientData(client, x, x.sum(1) if name == "one number" else y)

    return of


def trainer_of(
    name: str = "mlp",
    settings: LocalTraining = PLAIN,
    steps: DPSGD | None = None,
    half: ClientHalf | None = None,
    execution: Execution = ONE_AT_A_TIME,
) -> Trainer:
    objective = OBJECTIVES["regression" if name == "one number" else "classification"]
    parts = (model_of(name), objective, settings, half or ClientHalf(), 11)
    return Trainer(*parts, local_steps=steps or rule(), execution=execution)


def results(trainer: Trainer, data: Callable[[int], ClientData], rounds: int = 3) -> dict[int, list[Params]]:
    """Each client's arrays of each round; all start anew from the model's, at another round's draws."""
    start = {n: a.clone() for n, a in model_arrays(trainer.model).items()}
    found: dict[int, list[Params]] = {client: [] for client in range(len(SIZES))}
    states: dict[int, Params] = {}
    for round in range(1, rounds + 1):
        for update in trainer.train(start, range(len(SIZES)), data, lambda c: states.get(c, {}), round):
            assert isinstance(update, ClientUpdate), update
            found[update.client].append({n: a.clone() for n, a in update.arrays.items()})
            states[update.client] = {n: a.clone() for n, a in update.state.items()}
    return found


def gap(one: Params, other: Params) -> float:
    return max(float((one[n] - a).norm() / a.norm().clamp(min=1e-6)) for n, a in other.items())


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the groups that were trained in spans."""
    found: list[int] = []
    inner = InSpans.__init__

    def spy(self: InSpans, stack: Any, chain: Any, objective: Any, members: Any) -> None:
        found.append(len(members))
        inner(self, stack, chain, objective, members)

    monkeypatch.setattr(InSpans, "__init__", spy)
    return found


CASES: dict[str, dict[str, Any]] = {
    "flat": {},
    "per layer": {"steps": rule(clipping="per_layer")},
    "adaptive": {"steps": rule(clipping="adaptive", count_noise=2.0)},
    "empty batches": {"steps": rule(chances=seldom)},
    "no row at all": {"steps": rule(chances=lambda size, *words: torch.ones(size).double())},
    "weight decay": {"settings": replace(PLAIN, weight_decay=0.2)},
    "few steps": {"settings": replace(PLAIN, max_steps=2, lr_decay=0.5)},
    "whole batches": {"settings": replace(PLAIN, batch_size=None, epochs=3)},
    "flattening": {"name": "flattening"},
    "linear": {"name": "linear"},
    "no bias": {"name": "no bias"},
    "regression": {"name": "one number"},
    "repeated rows": {"repeats": True},
    "no noise": {"steps": rule(0.0)},
    "starts of their own": {"half": Grown(), "settings": replace(PLAIN, weight_decay=0.1)},
}


@pytest.mark.parametrize("case", CASES)
def test_lockstep_in_spans_is_one_client_at_a_time(case: str, groups: list[int]) -> None:
    keys = dict(CASES[case])
    data = data_of(keys.get("name", "mlp"), keys.pop("repeats", False))
    alone = results(trainer_of(**keys), data)
    assert not groups
    together = results(trainer_of(**keys, execution=TOGETHER), data)
    assert groups == [6] * 3
    for client, rounds in alone.items():
        assert max(gap(found, expected) for found, expected in zip(together[client], rounds, strict=True)) < 1e-9


def test_momentum_draws_alike_on_the_stack(groups: list[int]) -> None:
    """Such steps are not made in spans, but keep to them."""
    keys: dict[str, Any] = {"settings": replace(PLAIN, momentum=0.6, weight_decay=0.1)}
    alone, together = (results(trainer_of(**keys, execution=way), data_of()) for way in (ONE_AT_A_TIME, TOGETHER))
    assert not groups
    assert max(gap(together[c][r], alone[c][r]) for c in alone for r in range(3)) < 1e-9


def test_float32_agrees_on_rows_that_repeat_and_differ_in_size(groups: list[int]) -> None:
    def rough(client: int) -> ClientData:
        data = data_of(repeats=True)(client)
        return data._replace(x=(data.x * torch.logspace(-3, 1, len(data.x), dtype=torch.float64)[:, None]).float())

    found = []
    for way in (ONE_AT_A_TIME, TOGETHER):
        trainer = trainer_of(execution=way)
        trainer.model.float()
        found.append(results(trainer, rough))
    assert groups == [6] * 3
    assert max(gap(found[1][c][r], found[0][c][r]) for c in range(6) for r in range(3)) < 1e-4


def test_clients_with_many_rows_are_trained_apart_and_draw_as_they_do_alone(groups: list[int]) -> None:
    def mixed(client: int) -> ClientData:
        data = data_of()(client)
        many = (
            data._replace(x=data.x.repeat(4, 1) + torch.arange(36.0)[:, None], y=data.y.repeat(4))
            if not client
            else data
        )
        return many

    alone, together = (results(trainer_of(execution=way), mixed) for way in (ONE_AT_A_TIME, TOGETHER))
    assert groups == [5] * 3
    assert max(gap(together[c][r], alone[c][r]) for c in alone for r in range(3)) < 1e-9


def test_the_sum_of_a_group_is_that_of_its_clients(groups: list[int]) -> None:
    one, other = (trainer_of(execution=TOGETHER) for _ in range(2))
    start = {n: a.clone() for n, a in model_arrays(one.model).items()}
    expected = {n: torch.zeros_like(a) for n, a in start.items()}
    for update in one.train(start, range(6), data_of(), lambda c: {}, 1):
        assert isinstance(update, ClientUpdate)
        expected = {n: total + update.num_examples * update.arrays[n] for n, total in expected.items()}
    (folded,) = other.train_folded(start, range(6), data_of(), lambda c: {}, 1, lambda update: update.num_examples)
    assert isinstance(folded, Folded) and groups == [6, 6]
    assert gap(folded.arrays, expected) < 1e-9


def test_runs_that_train_together_are_folded_each_by_itself(groups: list[int]) -> None:
    """As packed sweeps do it: two runs from models, at learning rates, noise and weights of their own; two clients fail."""

    def spoilt(client: int) -> ClientData:
        data = data_of()(client)  # of client 1 the gradients are too large for float64, and the rows are finite
        return data._replace(x=data.x * 1e200) if client == 1 else data

    kinds = [(PLAIN, rule(0.7), 1.0), (replace(PLAIN, lr=0.05), rule(0.3, clip_norm=0.2), 1.2)]
    engines, starts, weights = [], [], [lambda update: update.num_examples, lambda update: 2.0 + update.client]
    for settings, steps, scale in kinds:
        model = model_of()
        engines.append(Lockstep(Stack(model, 12), model, classification, settings, ClientHalf(), 11, 1, steps))
        starts.append({n: a.clone() * scale for n, a in model_arrays(model).items()})
    jobs = [
        Job(engines[run].recipe, starts[run], client, spoilt, lambda client: {}, 1, weights[run])
        for client in range(6)
        for run in (0, 1)
    ]
    together = engines[0].train_jobs(jobs)
    assert groups == [12]
    assert [place for place, one in enumerate(together) if isinstance(one, ClientFailure)] == [2, 3]
    for run, (settings, steps, _) in enumerate(kinds):
        folded = together[run]
        assert isinstance(folded, Folded) and [update.client for update in folded.updates] == [0, 2, 3, 4, 5]
        expected = {n: torch.zeros_like(a) for n, a in starts[run].items()}
        for update in trainer_of(settings=settings, steps=steps).train(starts[run], range(6), spoilt, lambda c: {}, 1):
            if isinstance(update, ClientUpdate):
                expected = {n: a + weights[run](update) * update.arrays[n] for n, a in expected.items()}
        assert gap(folded.arrays, expected) < 1e-9


# The mathematics


def by_hand(steps: DPSGD, data: ClientData, when: int, settings: LocalTraining = PLAIN) -> Params:
    """DP-SGD written out, with noise drawn in full: all of the unseen noise in step `when`, at the size that it has at the end."""
    model = model_of()
    client = PrivateClient(steps, sum(w.numel() for w in model.parameters()), settings, data, {}, 1)
    client.keep_to_span(FirstLayer(8, WIDE, False))
    assert client.span is not None
    seen = [client.noise(step) for step in range(client.steps)]
    unseen = client.span.outside(client.unseen_noise().double())
    weights = list(model.parameters())
    for step in range(client.steps):
        total = seen[step].clone()
        if step == when:  # what is added at step s is decayed by each later step, and taken times the learning rate
            left = (1 - settings.lr * settings.weight_decay) ** (client.steps - 1 - step)
            total[: 8 * WIDE] -= unseen.flatten() * client.expected_batch / settings.lr / left
        gradients = [
            piece.view_as(w) for piece, w in zip(total.split([w.numel() for w in weights]), weights, strict=True)
        ]
        for row in client.rows(step):
            own = torch.autograd.grad(classification(model(data.x[row][None]), data.y[row][None]), weights)
            norm = torch.cat([g.flatten() for g in own]).norm()
            factor = (steps.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = [total + factor * g for total, g in zip(gradients, own, strict=True)]
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= settings.lr * (gradient / client.expected_batch + settings.weight_decay * weight)
    return {n: a.clone() for n, a in model_arrays(model).items()}


@pytest.mark.parametrize("execution", [ONE_AT_A_TIME, Execution("lockstep", 1)])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_no_step_sees_when_the_unseen_noise_was_drawn(execution: Execution, decay: float) -> None:
    settings, data = replace(PLAIN, weight_decay=decay), data_of()(2)
    trainer = trainer_of(settings=settings, execution=execution)
    start = {n: a.clone() for n, a in model_arrays(trainer.model).items()}
    (update,) = trainer.train(start, [2], lambda client: data, lambda client: {}, 1)
    assert isinstance(update, ClientUpdate)
    found = {n: a.clone() for n, a in update.arrays.items()}
    last = update.num_steps - 1
    for when in (0, last // 2, last):
        assert gap(found, by_hand(rule(), data, when, settings)) < 1e-9
    with pytest.raises(AssertionError):  # it does make a difference whether it was drawn at all
        assert gap(found, by_hand(rule(), data, last + 1, settings)) < 1e-3


def scaled_noise(execution: Execution, settings: LocalTraining, rounds: int = 60) -> tuple[Tensor, Tensor]:
    """(m, 8, inputs) a first layer's noise in a whole round over its promised size, inside and outside of the span.

    Gradients are clipped to nothing beside the noise.
    """
    steps = rule(1e7, clip_norm=1e-7)
    trainer = trainer_of(settings=settings, steps=steps, execution=execution)
    start = {n: a.clone() for n, a in model_arrays(trainer.model).items()}
    inside, outside = [], []
    for round in range(1, rounds + 1):
        for update in trainer.train(start, [0, 2, 4], data_of(), lambda client: {}, round):
            assert isinstance(update, ClientUpdate)
            data, lr = data_of()(update.client), settings.lr
            client = PrivateClient(steps, 1, settings, data, {}, round)
            velocity, moved = (
                [0.0] * client.steps,
                [0.0] * client.steps,
            )  # of each step's noise, by torch.optim.SGD's rule
            for step in range(client.steps):
                velocity = [settings.momentum * v + (s == step) for s, v in enumerate(velocity)]
                moved = [m + lr * v for m, v in zip(moved, velocity, strict=True)]
            size = sum(m * m for m in moved) ** 0.5 / client.expected_batch
            client.keep_to_span(FirstLayer(8, WIDE, False))
            assert client.span is not None
            whole = torch.linalg.qr(client.span.basis.mT, mode="complete").Q
            name = next(iter(start))
            turned = (update.arrays[name] - start[name]) @ whole / size
            inside.append(turned[:, : len(client.span.basis)].flatten())
            outside.append(turned[:, len(client.span.basis) :].flatten())
    return torch.cat(inside), torch.cat(outside)


def check_noise(execution: Execution, settings: LocalTraining) -> None:
    """At level 1e-6 each: sizes by chi-square, the shape by Kolmogorov and Smirnov."""
    for noise in scaled_noise(execution, settings):
        low, high = chi2.ppf([5e-7, 1 - 5e-7], len(noise))
        assert low < float(noise.square().sum()) < high
        assert kstest(noise.numpy(), "norm").pvalue > 1e-6


@pytest.mark.parametrize("execution", [ONE_AT_A_TIME, TOGETHER])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_a_rounds_noise_has_the_promised_size_inside_the_span_and_outside(
    execution: Execution, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(PLAIN, momentum=momentum)
    check_noise(execution, settings)
    unseen = PrivateClient.unseen_noise
    for mistaken in (0.0, 0.95):
        monkeypatch.setattr(PrivateClient, "unseen_noise", lambda self, by=mistaken: by * unseen(self))
        with pytest.raises(AssertionError):
            check_noise(execution, settings)


SGDS = {
    "plain": PLAIN,
    "rates fall": replace(PLAIN, lr_decay=0.5),
    "decay": replace(PLAIN, weight_decay=0.4),
    "momentum and decay": replace(PLAIN, momentum=0.6, weight_decay=0.4),
}


@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
@pytest.mark.parametrize("sgd", SGDS)
@pytest.mark.parametrize("execution", [ONE_AT_A_TIME, TOGETHER])
def test_the_unseen_noise_is_drawn_once_and_is_the_sum_of_what_each_step_promised(
    execution: Execution, sgd: str, clipping: str
) -> None:
    """What torch.optim.SGD makes of each step's noise, one step at a time."""
    drawn: dict[tuple[int, int], dict[str, float]] = {}

    def noted(size: int, std: float, round: int, client: int, purpose: str) -> Tensor:
        own = drawn.setdefault((round, client), {})
        assert purpose not in own
        own[purpose] = std
        return noise(size, std, round, client, purpose)

    settings = SGDS[sgd]
    steps = rule(noise=noted, clipping=clipping, clip_lr=0.5, count_noise=2.0)
    results(trainer_of(settings=settings, steps=steps, execution=execution), data_of(), rounds=2)
    assert len(drawn) == 12
    for (round, client), own in drawn.items():
        stds = [std for purpose, std in own.items() if purpose.startswith("dp-sgd noise")]
        assert len(stds) == settings.steps(SIZES[client]) and (len(set(stds)) > 1) == (clipping == "adaptive")
        effects = []
        for step in range(len(stds)):
            weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
            decay, lr = settings.weight_decay, settings.lr * settings.lr_decay ** (round - 1)
            optimizer = torch.optim.SGD([weight], lr=lr, momentum=settings.momentum, weight_decay=decay)
            for now in range(len(stds)):
                weight.grad = torch.tensor(float(now == step), dtype=torch.float64)
                optimizer.step()
            effects.append(float(weight.detach()))
        size = sum((effect * std) ** 2 for effect, std in zip(effects, stds, strict=True)) ** 0.5
        assert own["dp-sgd unseen noise"] == pytest.approx(size / min(4, SIZES[client]), rel=1e-12)


def test_a_second_draw_of_the_unseen_noise_is_refused() -> None:
    client = PrivateClient(rule(), 8 * WIDE, PLAIN, data_of()(2), {}, 1)
    client.keep_to_span(FirstLayer(8, WIDE, False))
    for step in range(client.steps):
        client.noise(step)
    client.unseen_noise()
    with pytest.raises(ValueError):
        client.unseen_noise()


# Where it is done


def test_it_is_for_dense_networks_and_sgd_that_nothing_corrects() -> None:
    plain, half = LocalTraining(), ClientHalf()
    assert first_layer(model_of(), classification, plain, half) == FirstLayer(8, WIDE, True)
    assert first_layer(nn.Linear(WIDE, 2), classification, replace(plain, momentum=0.5), half) == FirstLayer(
        2, WIDE, False
    )
    for model, settings, client_half in (
        (model_of(), replace(plain, max_grad_norm=1.0), half),
        (model_of(), LocalTraining(optimizer=torch.optim.Adam), half),
        (model_of(), plain, Proximal(0.1)),
        (MLP((WIDE,), 3, dropout=0.5), plain, half),
        (CNN((1, 16, 16), 3, channels=(2, 2), hidden=4), plain, half),
    ):
        assert first_layer(model, classification, settings, client_half) is None


def test_it_is_for_few_rows_and_several_steps() -> None:
    first, x = FirstLayer(8, WIDE, False), torch.randn(30, WIDE)
    few, many = torch.arange(10), torch.arange(11)
    assert span_of(x, [few, few], first) is not None
    assert span_of(x, [few], first) is None
    assert span_of(x, [few, many], first) is None
    assert span_of(x[:, None], [few, few], first) is None  # two positions of one example, perhaps
    x[3, 0] = float("inf")
    assert span_of(x, [few, few], first) is None
    assert span_of(x, [few[4:], few[4:]], first) is not None


def test_rows_come_back_from_their_coordinates() -> None:
    x = torch.randn(30, WIDE)
    x[7] = x[3] * 2
    span = span_of(x, [torch.tensor([3, 9, 7]), torch.tensor([9, 20])], FirstLayer(8, WIDE, False))
    assert span is not None and span.rows.tolist() == [3, 7, 9, 20] and span.places[1].tolist() == [2, 3]
    torch.testing.assert_close(span.coordinates @ span.basis, x[span.rows])
    torch.testing.assert_close(span.basis @ span.basis.mT, torch.eye(4))
    torch.testing.assert_close(span.outside(x[span.rows]), torch.zeros(4, WIDE), atol=1e-5, rtol=0)


@pytest.mark.parametrize("execution", [ONE_AT_A_TIME, TOGETHER])
def test_a_row_that_is_not_finite_fails_its_client_alone(execution: Execution) -> None:
    def spoilt(client: int) -> ClientData:
        data = data_of()(client)
        return data._replace(x=data.x * float("nan")) if client == 1 else data

    trainer = trainer_of(execution=execution)
    start = {n: a.clone() for n, a in model_arrays(trainer.model).items()}
    found = [*trainer.train(start, range(6), spoilt, lambda client: {}, 1)]
    assert [type(one) for one in found] == [ClientUpdate, ClientFailure, *[ClientUpdate] * 4]


def test_batches_are_drawn_once() -> None:
    """Where the operating system draws, they would be others the next time."""
    client = PrivateClient(rule(chances=lambda size, *words: torch.rand(size).double()), 99, PLAIN, data_of()(2), {}, 1)
    client.keep_to_span(FirstLayer(2, WIDE, False))
    assert all(torch.equal(client.rows(step), client.rows(step)) for step in range(client.steps))
    assert client.span is not None
    for step in range(client.steps):
        assert torch.equal(client.span.rows[client.span.places[step]], client.rows(step))


def test_few_numbers_are_drawn() -> None:
    drawn: list[int] = []

    def counted(size: int, *words: Any) -> Tensor:
        drawn.append(size)
        return noise(size, *words)

    model = MLP((784,), 10)
    settings, data = LocalTraining(1, 10), ClientData(0, torch.randn(50, 784), torch.arange(50) % 10)
    client = PrivateClient(rule(noise=counted), 199_210, settings, data, {}, 1)
    client.keep_to_span(FirstLayer(200, 784, True))
    assert first_layer(model, classification, settings, ClientHalf()) == FirstLayer(200, 784, True)
    for step in range(5):
        client.noise(step)
    client.unseen_noise()
    assert client.span is not None
    assert drawn == [*[42_410 + 200 * len(client.span.rows)] * 5, 784 * 200]
