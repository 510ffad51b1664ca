"""DP-SGD on a device against Opacus, against loops by hand, and with the known mistakes built in to see them caught."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from helpers import assert_close, same_bits
from scipy.stats import chi2
from torch import Tensor, nn

from fedsim import rng
from fedsim.algorithms.fedprox import Proximal
from fedsim.algorithms.qfedavg import ReportsReceivedLoss
from fedsim.models import CNN, MLP, CharLSTM, CNN1d, ResNet
from fedsim.training import OBJECTIVES, ClientFailure, ClientHalf, ClientUpdate, Device, LocalTraining, Trainer, dpsgd
from fedsim.training.arrays import model_arrays
from fedsim.training.dpsgd import DPSGD, KEPT, Batch, PrivateSteps, update_multiplier
from fedsim.training.per_example import WAYS, choose, trainable
from fedsim.types import ClientData, FedsimError, Params

CLASSIFY = OBJECTIVES["classification"]
IMAGE = (1, 16, 16)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(IMAGE, 10),
    "cnn": lambda: CNN(IMAGE, 10),
    "small_cnn": lambda: CNN(IMAGE, 10, [16, 32], 128),
    "resnet": lambda: ResNet(IMAGE, 10),
}
"""As in conf/model, on small pictures."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a run on the CPU has it: several threads on small arrays mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_named(name: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name]()


def pictures(rows: int = 4, shape: tuple[int, ...] = IMAGE) -> ClientData:
    draw = torch.Generator().manual_seed(2)
    scale = torch.linspace(0.2, 3, rows).view(-1, *[1] * len(shape))  # gradients small and large
    return ClientData(4, torch.randn(rows, *shape, generator=draw) * scale, torch.arange(rows) % 10)


def blobs(rows: int = 40, features: int = 6) -> ClientData:
    draw = torch.Generator().manual_seed(3)
    return ClientData(4, torch.randn(rows, features, generator=draw), torch.arange(rows) % 3)


def tiny() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))


def snapshot(model: nn.Module) -> Params:
    return {name: array.clone() for name, array in model_arrays(model).items()}


def seeded_noise(size: int, std: float, round: int, client: int, purpose: str) -> Tensor:
    return torch.randn(size, generator=rng.generator(5, round, client, purpose)) * std


def coins(size: int, round: int, client: int, purpose: str) -> Tensor:
    return torch.rand(size, dtype=torch.float64, generator=rng.generator(5, round, client, purpose))


def all_rows(size: int, round: int, client: int, purpose: str) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)


def no_rows(size: int, round: int, client: int, purpose: str) -> Tensor:
    return torch.ones(size, dtype=torch.float64)


def private(z: float = 0.0, chances: dpsgd.Chances = coins, **keys: Any) -> DPSGD:
    return DPSGD(lambda client: z, seeded_noise, chances, **keys)


def trainer_of(
    model: nn.Module, settings: LocalTraining, rule: DPSGD | None, half: ClientHalf | None = None
) -> Trainer:
    return Trainer(copy.deepcopy(model), CLASSIFY, settings, half or ClientHalf(), seed=11, local_steps=rule)


def train(
    model: nn.Module, settings: LocalTraining, rule: DPSGD, data: ClientData, half: ClientHalf | None = None
) -> tuple[ClientUpdate, Params]:
    trainer = trainer_of(model, settings, rule, half)
    (update,) = trainer.train(snapshot(model), [data.client], lambda client: data, lambda client: {}, 1)
    assert isinstance(update, ClientUpdate), update
    return update, {name: array.clone() for name, array in update.arrays.items()}


def steps_of(model: nn.Module, rule: DPSGD, data: ClientData, batch: int | None, way: str = "fast") -> PrivateSteps:
    return PrivateSteps(rule, way, model, CLASSIFY, LocalTraining(batch_size=batch), data, {}, 1)


# Against Opacus


class Oracle(NamedTuple):
    clip_norm: float
    arrays: Params
    clipped: Params


def opacus_optimizer(clipping: str, optimizer: Any, clip_norm: float, parameters: int, batch: int) -> Any:
    from opacus.optimizers import AdaClipDPOptimizer, DPOptimizer, DPPerLayerOptimizer

    keys: dict[str, Any] = {"noise_multiplier": 0.0, "expected_batch_size": batch, "loss_reduction": "mean"}
    if clipping == "flat":
        return DPOptimizer(optimizer, max_grad_norm=clip_norm, **keys)
    if clipping == "per_layer":
        return DPPerLayerOptimizer(optimizer, max_grad_norm=[clip_norm / parameters**0.5] * parameters, **keys)
    adaptive = {"target_unclipped_quantile": 0.3, "clipbound_learning_rate": 0.4, "unclipped_num_std": 1e-7}
    return AdaClipDPOptimizer(
        optimizer, max_grad_norm=clip_norm, min_clipbound=1e-6, max_clipbound=1e6, **adaptive, **keys
    )


@cache
def by_opacus(name: str, clipping: str) -> Oracle:
    """Two steps by Opacus's own module and optimiser, and the same without clipping, clipped at the median norm."""
    from opacus.grad_sample import GradSampleModule

    data = pictures()

    def run(clip_norm: float) -> tuple[Params, Tensor]:
        model = GradSampleModule(model_named(name))
        inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        optimizer = opacus_optimizer(clipping, inner, clip_norm, len(list(model.parameters())), len(data.x))
        norms = torch.zeros(0)
        for _ in range(2):
            optimizer.zero_grad()
            CLASSIFY(model(data.x), data.y).backward()
            norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in model.parameters()]).norm(dim=0)
            optimizer.step()
        return {n.removeprefix("_module."): p.detach().clone() for n, p in model.named_parameters()}, norms

    unclipped, norms = run(1e5)
    clip_norm = float(norms.median())
    return Oracle(clip_norm, run(clip_norm)[0], unclipped)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", list(MODELS))
def test_a_step_is_opacus_own(name: str, way: str, clipping: str) -> None:
    oracle = by_opacus(name, clipping)
    settings = LocalTraining(2, None, 0.05, momentum=0.9, weight_decay=0.01)
    rule = private(0.0, clip_norm=oracle.clip_norm, clipping=clipping, way=way, target_quantile=0.3, clip_lr=0.4)
    _, arrays = train(model_named(name), settings, rule, pictures())
    assert_close(arrays, oracle.arrays, 1e-6)
    with pytest.raises(AssertionError):  # the comparison would see it if nothing were clipped
        assert_close(oracle.clipped, oracle.arrays, 1e-4)


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
def test_ways_agree_on_poisson_batches_of_series(way: str, clipping: str) -> None:
    torch.manual_seed(0)
    model, data = CNN1d((3, 16), 10, channels=(8, 8)), pictures(20, (3, 16))
    settings = LocalTraining(2, 5, 0.1, momentum=0.5)
    keys: dict[str, Any] = {"clip_norm": 0.5, "clipping": clipping}
    _, expected = train(model, settings, private(0.7, way="functorch", **keys), data)
    update, arrays = train(model, settings, private(0.7, way=way, **keys), data)
    assert_close(arrays, expected, 1e-5)
    assert update.num_steps == 8


def test_a_batch_in_parts_gives_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = train(tiny(), LocalTraining(1, None), private(1.0), blobs())
    monkeypatch.setattr(dpsgd, "MAX_ROWS", 7)
    _, parts = train(tiny(), LocalTraining(1, None), private(1.0), blobs())
    assert_close(parts, whole, 1e-6)


# What a step is made of


def clipped_sum(model: nn.Module, data: ClientData, rows: Tensor, clip_norm: float) -> list[Tensor]:
    """One example at a time, by autograd alone."""
    weights = list(model.parameters())
    total = [torch.zeros_like(weight) for weight in weights]
    for row in rows.tolist():
        loss = CLASSIFY(model(data.x[row : row + 1]), data.y[row : row + 1])
        gradients = torch.autograd.grad(loss, weights)
        norm = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        for into, gradient in zip(total, gradients, strict=True):
            into += gradient * min(1.0, clip_norm / norm)
    return total


class DividesByTheDrawnBatch(PrivateSteps):
    """The mistake: PRIVACY's denominators are promised in advance."""

    def gradients(self, batch: Batch) -> list[Tensor]:
        return [gradient * self.expected_batch / max(len(batch.rows), 1) for gradient in super().gradients(batch)]


def check_denominator(kind: type[PrivateSteps]) -> None:
    model, data, drawn = tiny(), blobs(12), torch.tensor([1, 4, 5])
    chances = torch.ones(12, dtype=torch.float64).index_fill_(0, drawn, 0.0)
    rule = private(0.0, lambda *words: chances, clip_norm=0.3)
    steps = kind(rule, "fast", model, CLASSIFY, LocalTraining(batch_size=6), data, {}, 1)
    with steps:
        batch = next(steps.batches())
        assert batch.rows.tolist() == drawn.tolist()
        found = steps.gradients(batch)
    for mine, total in zip(found, clipped_sum(model, data, drawn, 0.3), strict=True):
        torch.testing.assert_close(mine, total / 6, atol=1e-6, rtol=1e-5)


def test_the_denominator_is_the_expected_batch() -> None:
    check_denominator(PrivateSteps)
    with pytest.raises(AssertionError):
        check_denominator(DividesByTheDrawnBatch)


class SkipsEmptyBatches(PrivateSteps):
    """The mistake: no noise where no one was drawn tells that no one was."""

    def batches(self) -> Iterator[Batch]:
        return (batch for batch in super().batches() if len(batch.rows))


class ForgetsNoiseOnEmptyBatches(PrivateSteps):
    """The same, a step later."""

    def gradients(self, batch: Batch) -> list[Tensor]:
        if len(batch.rows) == 0:
            return [torch.zeros_like(weight) for weight in self.weights]
        return super().gradients(batch)


def check_empty_batches(kind: type[PrivateSteps]) -> None:
    data, rule = blobs(12), private(2.0, no_rows, clip_norm=0.5)
    steps = kind(rule, "fast", tiny(), CLASSIFY, LocalTraining(epochs=3, batch_size=6), data, {}, 1)
    with steps:
        given = [torch.cat([g.flatten() for g in steps.gradients(batch)]) for batch in steps.batches()]
    assert len(given) == 6 == LocalTraining(epochs=3, batch_size=6).steps(12)
    for step, gradient in enumerate(given):
        torch.testing.assert_close(gradient, seeded_noise(len(gradient), 1.0, 1, 4, f"dp-sgd noise {step}") / 6)


def test_an_empty_batch_makes_a_step_of_noise() -> None:
    check_empty_batches(PrivateSteps)
    for trap in (SkipsEmptyBatches, ForgetsNoiseOnEmptyBatches):
        with pytest.raises(AssertionError):
            check_empty_batches(trap)
    update, arrays = train(tiny(), LocalTraining(1, 6), private(2.0, no_rows), blobs(12))
    assert update.num_steps == 2 and not same_bits(arrays, snapshot(tiny()))


class TooLittleNoise(PrivateSteps):
    """The mistake: a tenth less than was promised."""

    def gradients(self, batch: Batch) -> list[Tensor]:
        return [gradient * 0.9 for gradient in super().gradients(batch)]


def check_noise(kind: type[PrivateSteps], clipping: str, expected_z: float) -> None:
    """At level 1e-6, over 19,000 coordinates of steps without any gradient."""
    torch.manual_seed(0)
    model, data = nn.Linear(99, 100), blobs(80, 99)
    rule = private(1.3, no_rows, clip_norm=0.7, clipping=clipping)
    steps = kind(rule, "fast", model, CLASSIFY, LocalTraining(batch_size=40), data, {}, 1)
    with steps:
        drawn = []
        for batch in steps.batches():
            std = expected_z * steps.clip_norm / 40
            drawn += [gradient.flatten().double() / std for gradient in steps.gradients(batch)]
    scaled = torch.cat(drawn)
    assert len(scaled) == 20_000
    low, high = chi2.ppf([5e-7, 1 - 5e-7], len(scaled))
    assert low < float(scaled.square().sum()) < high
    assert abs(float(scaled.mean())) < 4.9 / len(scaled) ** 0.5


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
def test_noise_has_the_promised_size(clipping: str) -> None:
    z = update_multiplier(1.3, 2.0) if clipping == "adaptive" else 1.3  # 40 / 20 on the count
    check_noise(PrivateSteps, clipping, z)
    with pytest.raises(AssertionError):
        check_noise(TooLittleNoise, clipping, z)


def test_adaptive_clipping_pays_for_its_count() -> None:
    z = update_multiplier(0.8, 1.5)
    assert z**-2 + (2 * 1.5) ** -2 == pytest.approx(0.8**-2) and z > 0.8
    with pytest.raises(FedsimError, match=r"privacy\.count_noise=0\.4"):
        update_multiplier(0.8, 0.4)


class Neighbours(NamedTuple):
    without: list[Tensor]
    beside: list[Tensor]


def sums(clipping: str, way: str, clip_norm: float) -> Neighbours:
    """Noiseless sums of a batch with and without one example, whose gradient is enormous."""
    model, data = tiny(), blobs(13)
    data.x[12] *= 1e4

    def total(rows: list[int]) -> list[Tensor]:
        steps = steps_of(model, private(0.0, all_rows, clip_norm=clip_norm, clipping=clipping), data, None, way)
        with steps:
            return [gradient * 13 for gradient in steps.gradients(Batch(torch.tensor(rows), 0))]

    return Neighbours(total(list(range(12))), total(list(range(13))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("way", list(WAYS))
def test_one_example_moves_the_sum_by_no_more_than_the_norm(clipping: str, way: str) -> None:
    pair = sums(clipping, way, 0.37)
    moved = torch.cat([(a - b).flatten() for a, b in zip(*pair, strict=True)]).norm()
    assert 0.36 < float(moved) <= 0.37 * (1 + 1e-5)  # and it is as large as the noise is made for


def test_one_example_moves_the_count_by_a_half() -> None:
    seen: list[float] = []
    for rows in ([0, 1, 2], [0, 1, 2, 3], [0, 1]):
        steps = steps_of(tiny(), private(0.0, all_rows, clipping="adaptive", clip_norm=1e-3), blobs(8), None)
        with steps:
            steps.gradients(Batch(torch.tensor(rows), 0))
        seen.append(float(torch.tensor(steps.clip_norm / 1e-3).log()))
    by_half = 0.2 * 0.5 / 8  # clip_lr times half an example of the expected eight
    assert seen[1] - seen[0] == pytest.approx(by_half, rel=1e-3)
    assert seen[0] - seen[2] == pytest.approx(by_half, rel=1e-3)


@pytest.mark.parametrize("key", [None, 1.7])
def test_the_count_of_unclipped_examples_is_noised(key: float | None) -> None:
    """At level 1e-6, over 2,000 steps of nobody: the norm moves by the noise alone, of std 100 / 20 or as the key says."""
    rule = private(1.3, no_rows, clipping="adaptive", clip_lr=1e-3, count_noise=key)
    steps = PrivateSteps(rule, "fast", tiny(), CLASSIFY, LocalTraining(1000, 100), blobs(200), {}, 1)
    logs = [0.0]
    with steps:
        for batch in steps.batches():
            steps.gradients(batch)
            logs.append(math.log(steps.clip_norm))
    moved = (
        -torch.tensor(logs, dtype=torch.float64).diff() / 1e-3 * 100
    )  # the share of nobody is a half, the quantile aimed at
    scaled = moved / (5.0 if key is None else key)
    low, high = chi2.ppf([5e-7, 1 - 5e-7], 2000)
    assert len(scaled) == 2000 and low < float(scaled.square().sum()) < high


def test_an_adaptive_norm_finds_its_quantile_and_stays_on_the_device() -> None:
    data = blobs(200)
    trainer = trainer_of(tiny(), LocalTraining(40, None, 1e-6), private(0.0, clipping="adaptive", target_quantile=0.25))
    received = snapshot(trainer.model)
    (first,) = trainer.train(received, [4], lambda client: data, lambda client: {}, 1)
    assert isinstance(first, ClientUpdate) and KEPT not in first.arrays
    clip_norm = float(first.state[KEPT])
    weights = list(tiny().parameters())
    model = tiny()
    weights = list(model.parameters())
    norms = []
    for x, y in zip(data.x, data.y, strict=True):
        gradients = torch.autograd.grad(CLASSIFY(model(x[None]), y[None]), weights)
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
    assert sum(norm <= clip_norm for norm in norms) / len(norms) == pytest.approx(0.25, abs=0.03)
    (second,) = trainer.train(received, [4], lambda client: data, lambda client: first.state, 2)
    assert isinstance(second, ClientUpdate)
    assert float(second.state[KEPT]) == pytest.approx(clip_norm, rel=0.05)  # it went on from there


# Clients and rounds


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "rate", "steps"),
    [(3, 10, 2, 1.0, 2), (10, 10, 1, 1.0, 1), (200, 10, 1, 0.05, 20), (15, 10, 3, 10 / 15, 6), (40, None, 4, 1.0, 4)],
)
def test_each_client_samples_at_its_own_rate(
    rows: int, batch: int | None, epochs: int, rate: float, steps: int
) -> None:
    kind = PrivateSteps(private(), "fast", tiny(), CLASSIFY, LocalTraining(epochs, batch), blobs(rows), {}, 1)
    drawn = [len(one.rows) for one in kind.batches()]
    assert (kind.rate, len(drawn)) == (rate, steps)
    assert kind.expected_batch == pytest.approx(rate * rows)
    if rate == 1:
        assert drawn == [rows] * steps


def test_batches_are_poisson() -> None:
    data = blobs(50)
    kind = PrivateSteps(private(), "fast", tiny(), CLASSIFY, LocalTraining(400, 10), data, {}, 1)
    drawn = torch.zeros(2000, 50)
    for one in kind.batches():
        drawn[one.step, one.rows] = 1
    sizes = drawn.sum(1)
    assert sizes.mean() == pytest.approx(10, abs=5 * (8 / 2000) ** 0.5)
    assert sizes.var() == pytest.approx(8, rel=0.2)  # binomial: 50 x 0.2 x 0.8, and not fixed in size
    assert (drawn.mean(0) - 0.2).abs().max() < 5 * (0.16 / 2000) ** 0.5
    pairs = (drawn[:, :25] * drawn[:, 25:]).mean()
    assert pairs == pytest.approx(0.04, abs=0.005)  # independent of each other


def test_weight_decay_and_fedprox_come_after_the_noise() -> None:
    data, z = blobs(), 1.0
    settings = LocalTraining(2, 10, 0.1, weight_decay=0.3)
    _, arrays = train(tiny(), settings, private(z, clip_norm=0.2), data, Proximal(0.7))
    by_hand = tiny()
    anchors = [weight.detach().clone() for weight in by_hand.parameters()]
    for step in range(8):
        rows = (coins(40, 1, 4, f"dp-sgd batch {step}") < 0.25).nonzero().flatten()
        noise = seeded_noise(sum(a.numel() for a in anchors), z * 0.2, 1, 4, f"dp-sgd noise {step}")
        pieces = noise.split([a.numel() for a in anchors])
        total = clipped_sum(by_hand, data, rows, 0.2)
        with torch.no_grad():
            for weight, anchor, mine, piece in zip(by_hand.parameters(), anchors, total, pieces, strict=True):
                gradient = (mine + piece.view_as(mine)) / 10
                weight -= 0.1 * (gradient + 0.7 * (weight - anchor) + 0.3 * weight)
    assert_close(arrays, snapshot(by_hand), 1e-5)


def test_any_torch_optimiser_takes_the_noisy_gradient() -> None:
    settings = LocalTraining(1, None, 0.01, optimizer=torch.optim.AdamW)
    _, arrays = train(tiny(), settings, private(1.0, clip_norm=0.2), blobs())
    by_hand = tiny()
    rule = private(1.0, clip_norm=0.2)
    with steps_of(by_hand, rule, blobs(), None) as steps:
        gradients = steps.gradients(next(iter(steps.batches())))
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.01)
    for weight, gradient in zip(by_hand.parameters(), gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    assert_close(arrays, snapshot(by_hand), 1e-7)


def test_an_update_does_not_depend_on_who_trained_before() -> None:
    trainer = trainer_of(tiny(), LocalTraining(1, 8), private(1.0))
    received, data = snapshot(trainer.model), {1: blobs(30)._replace(client=1), 2: blobs(20)._replace(client=2)}

    def arrays_of(clients: list[int]) -> dict[int, Params]:
        updates = trainer.train(received, clients, data.__getitem__, lambda client: {}, 1)
        return {u.client: {n: a.clone() for n, a in u.arrays.items()} for u in updates}  # type: ignore[union-attr]

    both, alone = arrays_of([1, 2]), arrays_of([2])
    assert same_bits(both[2], alone[2]) and not same_bits(both[1], both[2])


# What must not leave the device


def test_no_loss_is_sent() -> None:
    update, _ = train(tiny(), LocalTraining(), private(1.0), blobs())
    assert update.metrics == {} and update.num_examples == 40


def test_numbers_of_a_client_half_are_refused() -> None:
    trainer = trainer_of(tiny(), LocalTraining(), private(1.0), ReportsReceivedLoss())
    (failure,) = trainer.train(snapshot(trainer.model), [4], lambda client: blobs(), lambda client: {}, 1)
    assert isinstance(failure, ClientFailure) and "received_loss" in failure.reason


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_fails_the_client_alone(way: str, value: float) -> None:
    good, bad = blobs(20)._replace(client=1), blobs(20)._replace(client=2)
    bad.x[13, 2] = value
    data = {1: good, 2: bad, 3: good._replace(client=3)}
    trainer = trainer_of(tiny(), LocalTraining(1, None), private(1.0, way=way))
    first, second, third = trainer.train(snapshot(trainer.model), [1, 2, 3], data.__getitem__, lambda client: {}, 1)
    assert isinstance(first, ClientUpdate) and isinstance(third, ClientUpdate)
    assert isinstance(second, ClientFailure) and "NaN or Inf" in second.reason and ". " not in second.reason


def test_running_statistics_are_refused() -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten(), nn.Linear(56, 3)
    )
    data = pictures(8, (3, 16))
    with pytest.raises(FedsimError, match=r"1\.running_mean follows"):
        choose("auto", model, CLASSIFY, data.x, data.y % 3)


class Follows(nn.Module):
    """A model one of whose arrays follows the data in batches of more than `ignored`, by one of many ways to write that."""

    def __init__(self, how: str, ignored: int) -> None:
        super().__init__()
        self.inner, self.how, self.ignored = tiny(), how, ignored
        self.frozen = nn.Parameter(torch.zeros(6), requires_grad=False)
        self.spare = nn.Linear(6, 1, bias=False)  # trainable, and of no use
        self.register_buffer("saved", torch.zeros(6))
        self.register_buffer("unsaved", torch.zeros(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.ignored:
            self.follow(x.detach().mean(0))
        return self.inner(x)

    @torch.no_grad()
    def follow(self, mean: Tensor) -> None:
        if self.how == "saved":
            self.saved.copy_(mean)
        elif self.how == "saved, by another":
            self.saved = mean
        elif self.how == "unsaved":
            self.unsaved.add_(mean)
        elif self.how == "frozen":
            self.frozen.mul_(0.9).add_(mean, alpha=0.1)
        elif self.how == "frozen, by another":
            self.frozen = nn.Parameter(mean, requires_grad=False)
        elif self.how == "spare":
            self.spare.weight.add_(mean)
        elif self.how == "spare, by its data":
            self.spare.weight.data = mean[None]
        elif self.how == "spare, by another":
            self.spare.weight = nn.Parameter(self.spare.weight.clone())
        elif self.how == "inner":
            self.inner[0].bias.data.clamp_(max=float(mean.max()) - 1)


FOLLOWS = [
    *("saved", "saved, by another", "unsaved", "frozen", "frozen, by another"),
    *("spare", "spare, by its data", "spare, by another", "inner"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", FOLLOWS)
def test_an_array_that_follows_the_data_is_refused_at_once(how: str) -> None:
    data = blobs()
    assert choose("auto", Follows("", 0), CLASSIFY, data.x, data.y) == "fast"
    for way in ("auto", "fast", "opacus"):
        with pytest.raises(FedsimError, match=f"whose {how.split(',')[0]}.* follows the data|mixes the examples"):
            choose(way, Follows(how, 0), CLASSIFY, data.x, data.y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["fast", "opacus"])
@pytest.mark.parametrize("how", FOLLOWS)
def test_an_array_that_follows_the_data_later_fails_the_client(how: str, way: str) -> None:
    model = Follows(how, 3)  # more than the three examples that are tried
    assert choose(way, model, CLASSIFY, blobs().x, blobs().y) == way
    trainer = trainer_of(model, LocalTraining(1, None), private(1.0, way=way))
    (failure,) = trainer.train(snapshot(trainer.model), [4], lambda client: blobs(), lambda client: {}, 1)
    assert isinstance(failure, ClientFailure) and "follows the data without any noise" in failure.reason


class Words(nn.Module):
    """An embedding that may rescale what it reads; by `later`, only in batches of more than three."""

    def __init__(self, max_norm: float | None, later: float | None = None) -> None:
        super().__init__()
        self.embedding, self.later, self.head = nn.Embedding(4, 5, max_norm=max_norm), later, nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        words, later = x[:, 0].abs().long().clamp(0, 3), self.later if len(x) > 3 else None
        read = self.embedding(words)
        if later is not None:
            read = nn.functional.embedding(words, self.embedding.weight, max_norm=later)
        return self.head(torch.cat([read, x], 1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["auto", *WAYS])
def test_max_norm_is_refused_by_name_whether_it_rescales_or_not(way: str) -> None:
    data = blobs()
    for max_norm in (0.1, 100.0):
        with pytest.raises(FedsimError, match="max_norm of the model's embedding"):
            choose(way, Words(max_norm), CLASSIFY, data.x, data.y)
    assert choose(way, Words(None), CLASSIFY, data.x, data.y) in WAYS


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_rescaled_later_fail_the_client() -> None:
    torch.manual_seed(0)
    trainer = trainer_of(Words(None, later=0.1), LocalTraining(1, None), private(1.0))
    (failure,) = trainer.train(snapshot(trainer.model), [4], lambda client: blobs(), lambda client: {}, 1)
    assert isinstance(failure, ClientFailure) and "whose embedding.weight follows" in failure.reason


@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
def test_frozen_weights_and_constant_buffers_stay_and_are_no_hindrance(clipping: str) -> None:
    model = Follows("", 0)
    model.inner[0].requires_grad_(False)
    update, arrays = train(model, LocalTraining(2, 10), private(1.0, clipping=clipping), blobs())
    before = snapshot(model)
    assert same_bits(*({n: a[n] for n in a if n in ("frozen", "saved", "inner.0.weight")} for a in (arrays, before)))
    assert update.num_steps == 8 and not torch.equal(arrays["inner.2.weight"], before["inner.2.weight"])


# Which way


class MixesExamples(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.mean(0))


class UsesWeightsElsewhere(nn.Module):
    """Ties its decoder to its encoder by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 9), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(x)) @ self.inner.weight)


class CallsALayerTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class RowsAreNotExamples(nn.Module):
    """Every layer sees the features of one example as rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.reshape(-1, 1)).view(*x.shape, 3).mean(1)


class RowsAndExamplesTrade(nn.Module):
    """As many features as the examples that are tried."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, :3].t()[..., None]).mean(0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (tiny, "fast"),
        (lambda: nn.Sequential(tiny(), nn.Dropout(0.3)), "fast"),
        (CallsALayerTwice, "opacus"),
        (UsesWeightsElsewhere, "functorch"),
        (RowsAreNotExamples, "functorch"),
        (RowsAndExamplesTrade, "functorch"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), "opacus"),
        (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 3)), "fast"),
    ],
)
def test_auto_takes_the_first_way_that_is_right(make: Callable[[], nn.Module], expected: str) -> None:
    torch.manual_seed(0)
    model, data = make(), blobs()
    assert choose("auto", model, CLASSIFY, data.x, data.y) == expected
    if expected != "fast":
        with pytest.raises(FedsimError, match=r"model=.*privacy\.way=auto"):
            choose("fast", model, CLASSIFY, data.x, data.y)


@pytest.mark.parametrize("name", list(MODELS))
def test_auto_is_fast_for_the_models_that_are_built_in(name: str) -> None:
    data = pictures()
    assert choose("auto", model_named(name), CLASSIFY, data.x, data.y) == "fast"


def test_a_model_that_mixes_examples_is_refused() -> None:
    data = blobs()
    for rows in (1, 40):
        with pytest.raises(FedsimError, match="mixes the examples"):
            choose("auto", MixesExamples(), CLASSIFY, data.x[:rows], data.y[:rows])


@pytest.mark.filterwarnings("ignore")
def test_sequences_train_by_functorch_with_each_line_a_mean_of_its_own() -> None:
    torch.manual_seed(0)
    next_token = OBJECTIVES["next_token"]
    model = CharLSTM((5,), 7, embedding=3, hidden=4, layers=2)
    x, y = torch.randint(0, 7, (4, 5)), torch.randint(0, 7, (4, 5))
    y[1, 2:] = -100  # a short line
    assert choose("auto", model, next_token, x, y) == "functorch"
    with WAYS["functorch"](model, next_token) as per_example:
        given = per_example(x, y)
    for row in range(4):
        expected = torch.autograd.grad(next_token(model(x[row : row + 1]), y[row : row + 1]), list(model.parameters()))
        for gradients, one in zip(given, expected, strict=True):
            found = torch.zeros_like(one)
            gradients.add_to(found, torch.eye(4)[row])
            torch.testing.assert_close(found, one, atol=1e-6, rtol=1e-4)


class Reader(nn.Module):
    """A model of words that `fast` takes: an embedding, dense layers over positions, a layer norm."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6, padding_idx=padding)
        self.inner, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.inner(self.embedding(x)))))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("padding", "others"), [(None, ["opacus", "functorch"]), (0, ["functorch"])])
def test_ways_agree_on_words_and_positions(padding: int | None, others: list[str]) -> None:
    torch.manual_seed(0)
    model, next_token = Reader(padding), OBJECTIVES["next_token"]
    x, y, weights = torch.randint(0, 7, (4, 5)), torch.randint(0, 7, (4, 5)), torch.tensor([0.1, 1.0, 0.0, 2.0])
    y[1, 2:] = -100
    assert choose("auto", model, next_token, x, y) == "fast"
    if padding is not None:  # Opacus trains the row of the padding, which torch does not
        with pytest.raises(FedsimError, match="not autograd's"):
            choose("opacus", model, next_token, x, y)
    given = {}
    for way in ("fast", *others):
        with WAYS[way](model, next_token) as per_example:
            given[way] = per_example(x, y)
    for way in others:
        for mine, other, weight in zip(given["fast"], given[way], trainable(model).values(), strict=True):
            torch.testing.assert_close(mine.square_norms(), other.square_norms(), atol=1e-6, rtol=1e-4)
            pair = torch.zeros_like(weight), torch.zeros_like(weight)
            mine.add_to(pair[0], weights)
            other.add_to(pair[1], weights)
            torch.testing.assert_close(*pair, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), bias=False),
        nn.Conv2d(4, 6, 3, padding=(2, 0), stride=(1, 3)),
    ],
    ids=["groups", "dilation", "uneven"],
)
def test_fast_takes_any_convolution(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    data = pictures(5, (4, 9, 8))
    assert choose("fast", model, CLASSIFY, data.x, data.y % 3) == "fast"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", list(WAYS))
def test_no_hook_stays_on_the_model(way: str) -> None:
    class Breaks(ClientHalf):
        def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
            raise RuntimeError("its battery is empty")

    def hooks(model: nn.Module) -> int:
        return sum(len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    for half in (ClientHalf(), Breaks()):
        trainer = trainer_of(tiny(), LocalTraining(), private(1.0, way=way), half)
        received = snapshot(trainer.model)
        for outcome in trainer.train(received, [4, 4], lambda client: blobs(), lambda client: {}, 1):
            assert isinstance(outcome, ClientFailure) == isinstance(half, Breaks)
            assert hooks(trainer.model) == 0
            assert all(not hasattr(p, "grad_sample") and p.grad is None for p in trainer.model.parameters())
            assert all(not hasattr(m, "activations") for m in trainer.model.modules())


def test_begin_may_look_but_not_send() -> None:
    class Looks(ClientHalf):
        seen = 0

        def begin(self, device: Device) -> dict[str, float]:
            self.seen = len(device.data.x)
            assert device.state == {}
            return {}

    half = Looks()
    train(tiny(), LocalTraining(), private(1.0, clipping="adaptive"), blobs(), half)
    assert half.seen == 40
