"""Lockstep is held against training one client at a time: every model, client half, optimiser and mechanism that has both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim import rng
from fedsim.algorithms.fedprox import Proximal
from fedsim.algorithms.qfedavg import ReportsReceivedLoss
from fedsim.models import CNN, MLP, CharLSTM, CNN1d, Linear, ResNet, TanhCNN
from fedsim.training import OBJECTIVES, ClientFailure, ClientHalf, ClientUpdate, Device, LocalTraining, Trainer
from fedsim.training.arrays import model_arrays
from fedsim.training.choose import Asked, choose_chunk_size, choose_execution
from fedsim.training.dpsgd import DPSGD, KEPT
from fedsim.training.execution import ONE_AT_A_TIME, Execution
from fedsim.training.objectives import IGNORED_TARGET
from fedsim.training.stack import Stack, fusible
from fedsim.types import ClientData, FedsimError, Params

SIZES = (12, 5, 9, 1, 12, 7, 3)
"""Examples of each client: ragged, some smaller than a batch."""


class Normed(nn.Sequential):
    """Layers that the built-in models do not have."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3, bias=False))


class Strided(nn.Sequential):
    def __init__(self) -> None:
        grouped = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=1)
        super().__init__(
            nn.Conv2d(1, 4, 3, bias=False), nn.GroupNorm(2, 4), grouped, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)
        )
        self(torch.zeros(2, 1, 12, 12))


class Twice(nn.Module):
    """One layer in two places, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head, self.tied = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 6)
        self.tied.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.tied(torch.tanh(self.inner(torch.tanh(self.inner(x)))))))


class OwnWeights(nn.Module):
    """What only torch.func can stack."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.weight = nn.Parameter(torch.ones(6)), nn.Parameter(torch.randn(6, 3) / 3)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale) @ self.weight


FLAT, IMAGE, SERIES, TEXT = (6,), (1, 16, 16), (3, 20), (7,)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Linear(FLAT, 3), FLAT),
    "mlp": (lambda: MLP(FLAT, 3, hidden=(8, 5)), FLAT),
    "dropout": (lambda: MLP(FLAT, 3, hidden=(16, 16), dropout=0.4), FLAT),
    "cnn": (lambda: CNN(IMAGE, 3, channels=(3, 4), hidden=6), IMAGE),
    "tanh_cnn": (lambda: TanhCNN(IMAGE, 3, channels=(3, 4), hidden=6), IMAGE),
    "cnn1d": (lambda: CNN1d(SERIES, 3), SERIES),
    "resnet": (lambda: ResNet(IMAGE, 3, widths=(4, 8), groups=2), IMAGE),
    "lstm": (lambda: CharLSTM(TEXT, 11, embedding=3, hidden=5, layers=2), TEXT),
    "normed": (Normed, FLAT),
    "strided": (Strided, (1, 12, 12)),
    "twice": (Twice, FLAT),
    "own weights": (OwnWeights, FLAT),
}
STACKED = [name for name in MODELS if name != "own weights"]


def made(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(4)
    return MODELS[name][0]().to(dtype)


def data_of(name: str, dtype: torch.dtype = torch.float64) -> Callable[[int], ClientData]:
    """The data of client i, who has SIZES[i] examples."""

    def one(client: int) -> ClientData:
        draw = rng.generator(1, 0, client, "test data")
        n, shape = SIZES[client], MODELS[name][1]
        if name == "lstm":
            x = torch.randint(11, (n, *shape), generator=draw)
            y = torch.randint(11, (n, *shape), generator=draw)
            return ClientData(client, x, torch.where(torch.rand(n, *shape, generator=draw) < 0.2, IGNORED_TARGET, y))
        return ClientData(
            client, torch.randn(n, *shape, generator=draw).to(dtype), torch.randint(3, (n,), generator=draw)
        )

    return one


def objective_of(name: str) -> Any:
    return OBJECTIVES["next_token" if name == "lstm" else "classification"]


def trained(
    trainer: Trainer,
    execution: Execution,
    name: str,
    rounds: int = 3,
    dtype: torch.dtype = torch.float64,
    data: Callable[[int], ClientData] | None = None,
) -> tuple[Params, list[Any]]:
    """FedAvg over all clients for some rounds; the arrays at the end, and the last round's results without theirs."""
    trainer.execution = execution
    held = data or data_of(name, dtype)
    arrays = {n: a.clone() for n, a in model_arrays(trainer.model).items()}
    states: dict[int, Params] = {}
    last: list[Any] = []
    for round in range(1, rounds + 1):
        total, weight, last = {n: torch.zeros_like(a) for n, a in arrays.items()}, 0, []
        for result in trainer.train(arrays, range(len(SIZES)), held, lambda c: states.get(c, {}), round):
            if isinstance(result, ClientFailure):
                last.append(result)
                continue
            weight += result.num_examples
            total = {n: total[n] + result.num_examples * a for n, a in result.arrays.items()}
            states[result.client] = {n: a.clone() for n, a in result.state.items()}
            last.append(result._replace(arrays={}, state={}))
        arrays = {n: a / weight for n, a in total.items()}
    return arrays, last


def gap(left: Params, right: Params) -> float:
    """Relative, over all arrays as one vector."""
    apart = sum(float((left[n].double() - a.double()).square().sum()) for n, a in right.items())
    return (apart / sum(float(a.double().square().sum()) for a in right.values())) ** 0.5


def check(
    name: str,
    execution: Execution,
    settings: LocalTraining,
    half: ClientHalf | None = None,
    local_steps: DPSGD | None = None,
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = made(name, dtype)
        parts = (objective_of(name), settings, half or ClientHalf(), 11)
        both = [
            trained(Trainer(copy.deepcopy(model), *parts, local_steps=local_steps), way, name, dtype=dtype)
            for way in (ONE_AT_A_TIME, execution)
        ]
        (alone, expected), (together, found) = both
        assert gap(together, alone) <= tolerance, f"{dtype}: {gap(together, alone):.1e}"
        assert gap(alone, model_arrays(model)) > 1e-3, "it must have learnt something"
        assert [(r.client, r.num_examples, r.num_steps) for r in found] == [
            (r.client, r.num_examples, r.num_steps) for r in expected
        ]
        for one, other in zip(found, expected, strict=True):
            assert one.metrics == pytest.approx(other.metrics, rel=1e-4)


PLAIN = LocalTraining(epochs=2, batch_size=4, lr=0.1)


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("width", [1, 3, 7])
def test_lockstep_is_one_at_a_time(name: str, width: int) -> None:
    check(name, Execution("lockstep", width), PLAIN)


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "normed", "twice", "own weights"])
@pytest.mark.parametrize("width", [2, 7])
def test_vmap_is_one_at_a_time(name: str, width: int) -> None:
    check(name, Execution("vmap", width), PLAIN)


@pytest.mark.parametrize(
    "settings",
    [
        replace(PLAIN, batch_size=None),
        replace(PLAIN, max_steps=3),
        replace(PLAIN, weight_decay=0.05),
        replace(PLAIN, momentum=0.9, weight_decay=0.01),
        replace(PLAIN, max_grad_norm=0.3),
        replace(PLAIN, lr_decay=0.7),
        LocalTraining(epochs=2, batch_size=4, lr=0.01, optimizer=torch.optim.AdamW),
        LocalTraining(epochs=2, batch_size=4, lr=0.01, optimizer=torch.optim.RMSprop),
    ],
    ids=["whole", "max_steps", "weight_decay", "momentum", "clipped", "lr_decay", "adamw", "rmsprop"],
)
@pytest.mark.parametrize("name", ["mlp", "twice", "cnn"])
def test_every_setting_of_a_client(settings: LocalTraining, name: str) -> None:
    check(name, Execution("lockstep", 3), settings)


class Remembers(ClientHalf):
    """A control variate of its own, kept from round to round: what `begin` reads, `correct` uses and `finish` writes."""

    def begin(self, device: Device) -> dict[str, float]:
        self.control = {n: a.clone() for n, a in device.state.items()}
        return {"known": float(len(self.control))}

    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        for name, gradient in zip(("first",), gradients[:1], strict=True):
            if name in self.control:
                gradient += 0.1 * self.control[name] / (1 + gradient.norm())

    def finish(self, device: Device, steps: int, lr: float) -> Params:
        first = next(iter(device.model.parameters())).detach()
        return {"first": (next(iter(device.received.values())) - first) / (steps * lr)}


@pytest.mark.parametrize(
    "half", [Proximal(0.5), ReportsReceivedLoss(), Remembers()], ids=["prox", "reports", "remembers"]
)
@pytest.mark.parametrize("name", ["mlp", "dropout", "tanh_cnn"])
def test_every_client_half(half: ClientHalf, name: str) -> None:
    check(name, Execution("lockstep", 3), PLAIN, half)


class Rescales(ClientHalf):
    """Looks at a whole gradient: what element by element is not."""

    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        for gradient in gradients:
            gradient /= 1 + gradient.norm()


def test_a_correction_that_looks_at_whole_arrays_sees_one_client() -> None:
    check("mlp", Execution("lockstep", 4), PLAIN, Rescales())


def noise(size: int, std: float, round: int, client: int, purpose: str) -> Tensor:
    return torch.randn(size, generator=rng.generator(5, round, client, purpose)) * std


def chances(size: int, round: int, client: int, purpose: str) -> Tensor:
    return torch.rand(size, dtype=torch.float64, generator=rng.generator(6, round, client, purpose))


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "adaptive"])
@pytest.mark.parametrize("name", ["linear", "mlp", "dropout", "tanh_cnn", "resnet", "normed"])
def test_private_lockstep_is_one_at_a_time(clipping: str, name: str) -> None:
    rule = DPSGD(lambda client: 0.3 + client / 10, noise, chances, clip_norm=0.3, clipping=clipping, way="fast")
    check(name, Execution("lockstep", 3), PLAIN, local_steps=rule)


def results(
    execution: Execution,
    name: str,
    half: ClientHalf | None = None,
    spoil: Callable[[ClientData], ClientData] = lambda d: d,
    dtype: torch.dtype = torch.float64,
    **more: Any,
) -> list[ClientUpdate | ClientFailure]:
    """One round of every client."""
    trainer = Trainer(
        made(name, dtype), objective_of(name), PLAIN, half or ClientHalf(), 11, execution=execution, **more
    )
    start = {n: a.clone() for n, a in model_arrays(trainer.model).items()}
    found = trainer.train(start, range(len(SIZES)), lambda c: spoil(data_of(name, dtype)(c)), lambda c: {}, 1)
    return [
        r._replace(arrays={n: a.clone() for n, a in r.arrays.items()}) if isinstance(r, ClientUpdate) else r
        for r in found
    ]


def check_failures(
    spoil: Callable[[ClientData], ClientData], **more: Any
) -> Iterator[tuple[ClientFailure, ClientFailure]]:
    alone, together = (results(way, "mlp", spoil=spoil, **more) for way in (ONE_AT_A_TIME, Execution("lockstep", 4)))
    assert [type(r) for r in together] == [type(r) for r in alone]
    for one, other in zip(together, alone, strict=True):
        if isinstance(one, ClientUpdate) and isinstance(other, ClientUpdate):
            assert gap(one.arrays, other.arrays) < 1e-9
        else:
            assert isinstance(one, ClientFailure) and isinstance(other, ClientFailure)
            yield one, other


def test_a_client_without_examples_fails_alone() -> None:
    ((one, other),) = check_failures(lambda d: d if d.client != 2 else d._replace(x=d.x[:0], y=d.y[:0]))
    assert one == other


def test_a_client_with_impossible_labels_fails_alone() -> None:
    ((one, other),) = check_failures(lambda d: d if d.client != 4 else d._replace(y=d.y + 3))
    assert one.client == other.client == 4


def test_a_client_that_diverges_fails_alone() -> None:
    ((one, other),) = check_failures(lambda d: d if d.client != 1 else d._replace(x=d.x * 1e200))
    assert one == other and "not finite" in one.reason


def test_a_gradient_that_is_not_finite_fails_its_client_alone() -> None:
    rule = DPSGD(lambda client: 1.0, noise, chances, clip_norm=0.3, way="fast")
    found = list(check_failures(lambda d: d if d.client != 1 else d._replace(x=d.x * float("nan")), local_steps=rule))
    assert [one.client for one, _ in found] == [1] and "NaN or Inf" in found[0][0].reason


def test_the_model_itself_is_left_alone() -> None:
    model = made("mlp")
    before = {n: a.clone() for n, a in model_arrays(model).items()}
    trainer = Trainer(model, objective_of("mlp"), PLAIN, ClientHalf(), 11, execution=Execution("lockstep", 3))
    list(trainer.train({n: a + 1 for n, a in before.items()}, range(4), data_of("mlp"), lambda c: {}, 1))
    assert gap(model_arrays(model), before) == 0 and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "strided", "lstm", "normed"])
def test_grouped_convolutions_are_those_of_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that CUDA takes, on the CPU."""
    from fedsim.training.stand_ins import Convolution

    expected = results(Execution("lockstep", 7), name)

    def forward(self: Any, x: Tensor) -> Tensor:
        out = self.grouped(x, self.holder.weight(f"{self.dot}weight"), self.own("bias"))
        self.holder.capture(self.name, self.layer, x, out)
        return out

    monkeypatch.setattr(Convolution, "forward", forward)
    for one, other in zip(results(Execution("lockstep", 7), name), expected, strict=True):
        assert isinstance(one, ClientUpdate) and isinstance(other, ClientUpdate)
        assert gap(one.arrays, other.arrays) < 1e-9


def test_dense_layers_are_fused_but_for_shared_weights() -> None:
    assert list(fusible(Stack(made("mlp"), 2))) == ["1", "3", "5"]
    assert list(fusible(Stack(made("twice"), 2))) == ["head"]


def asked(name: str, **keys: Any) -> Execution:
    trainer = Trainer(made(name, torch.float32), objective_of(name), PLAIN, ClientHalf(), 11)
    x, y = (torch.cat(column) for column in zip(*[data_of(name, torch.float32)(c)[1:] for c in (0, 1)], strict=True))
    return choose_execution(Asked(**keys), trainer.alone(), x, y, cohort=100)


def test_the_rule_takes_dense_models_together_and_convolutions_one_by_one() -> None:
    assert asked("linear").way == "lockstep" and asked("linear").width > 8
    assert asked("lstm").way == asked("resnet").way == "one" and asked("cnn").width == 1
    assert asked("own weights").way == "vmap"


def test_the_rule_keeps_to_the_memory_bound() -> None:
    trainer = Trainer(nn.Linear(784, 3), objective_of("mlp"), PLAIN, ClientHalf(), 11)
    x, y = torch.randn(6, 784), torch.randint(3, (6,))
    wide, narrow = (choose_execution(Asked(memory_mb=m), trainer.alone(), x, y, cohort=100) for m in (1024, 1))
    assert wide.width == 25 and 1 <= narrow.width < 5 and "grid.memory_mb=1" in narrow.why
    assert asked("mlp", width=5).width == 5 and asked("own weights", way="one").way == "one"


@pytest.mark.parametrize("width", [1, 8, 25, 64, 100, 256])
@pytest.mark.parametrize("cohort", [1, 20, 100, 1000, 5000])
def test_a_chunk_holds_the_width_that_the_run_says(width: int, cohort: int) -> None:
    size = choose_chunk_size(Execution("lockstep", width), cohort, torch.device("cpu"))
    assert width <= size <= max(64, width)


def test_a_way_that_does_not_take_the_model_is_refused_in_a_sentence() -> None:
    with pytest.raises(FedsimError, match=r"grid\.way=lockstep cannot train this model \(lockstep: .*no batched form"):
        asked("own weights", way="lockstep")
    for bad in ({"way": "sideways"}, {"width": 0}, {"width": "wide"}, {"memory_mb": 0}, {"precision": "float8"}):
        with pytest.raises(FedsimError, match=r"grid\."):
            Asked(**bad)


@pytest.mark.parametrize("key", [{"compile": True}, {"precision": "bfloat16"}])
def test_an_option_of_lockstep_is_not_silently_left_out(key: dict[str, Any]) -> None:
    with pytest.raises(FedsimError, match=rf"grid\.{next(iter(key))}=.* is of clients in lockstep"):
        asked("mlp", way="one", **key)


def test_bfloat16_products_are_near_float32s() -> None:
    exact, rough = (
        results(Execution("lockstep", 3, precision=p), "tanh_cnn", dtype=torch.float32) for p in ("float32", "bfloat16")
    )
    gaps = [gap(a.arrays, b.arrays) for a, b in zip(rough, exact, strict=True)]  # type: ignore[union-attr]
    assert 1e-6 < max(gaps) < 0.02


@pytest.mark.slow
def test_a_compiled_model_trains_alike() -> None:
    plain, compiled = (results(Execution("lockstep", 3, compile=c), "mlp") for c in (False, True))
    for one, other in zip(compiled, plain, strict=True):
        assert (
            isinstance(one, ClientUpdate) and isinstance(other, ClientUpdate) and gap(one.arrays, other.arrays) < 1e-9
        )


class MixesClients(nn.Module):
    """Looks at the batch as a whole, which in lockstep would be the neighbours' too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


def test_a_model_that_looks_across_its_batch_is_not_stacked() -> None:
    x, y = torch.randn(6, 6), torch.randint(3, (6,))
    trainer = Trainer(MixesClients(), objective_of("mlp"), PLAIN, ClientHalf(), 11)
    found = choose_execution(Asked(), trainer.alone(), x, y, cohort=100)
    assert found.way == "one"  # a batch that is filled up is not the client's own, by torch.func either
    norm = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    alone = choose_execution(
        Asked(), Trainer(norm, objective_of("mlp"), PLAIN, ClientHalf(), 11).alone(), x, y, cohort=100
    )
    assert alone.way == "one" and "BatchNorm1d" in alone.why


@pytest.mark.parametrize("keys", [{}, {"width": "measure"}], ids=["rule", "measured"])
@pytest.mark.parametrize("name", ["mlp", "resnet", "own weights"])
def test_choosing_leaves_the_model_as_it_was(name: str, keys: dict[str, Any]) -> None:
    trainer = Trainer(made(name, torch.float32).eval(), objective_of(name), PLAIN, ClientHalf(), 11)
    before = {n: a.clone() for n, a in model_arrays(trainer.model).items()}
    x, y = data_of(name, torch.float32)(0)[1:]
    choose_execution(Asked(**keys), trainer.alone(), x, y, cohort=100)
    assert gap(model_arrays(trainer.model), before) == 0 and not trainer.model.training


def test_measuring_gives_a_width_that_was_measured() -> None:
    found = asked("mlp", width="measure")
    assert "measured" in found.why and found.width >= 1


def test_memory_that_runs_out_halves_the_width_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fedsim.training.lockstep import Lockstep

    inner, widths = Lockstep.train, []

    def train(self: Lockstep, received: Params, clients: Any, *where: Any) -> Any:
        widths.append(len(clients))
        if len(clients) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(self, received, clients, *where)

    expected = results(Execution("lockstep", 2), "mlp")
    monkeypatch.setattr(Lockstep, "train", train)
    found = results(Execution("lockstep", 4), "mlp")
    assert widths[:2] == [4, 2] and max(widths[1:]) == 2 and "grid.width=2" in caplog.text
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, ClientUpdate) and isinstance(other, ClientUpdate) and gap(one.arrays, other.arrays) == 0


def test_an_adaptive_norm_is_kept_by_client() -> None:
    rule = DPSGD(lambda client: 0.3, noise, chances, clip_norm=0.3, clipping="adaptive", way="fast")
    found = results(Execution("lockstep", 3), "mlp", local_steps=rule)
    norms = [float(r.state[KEPT]) for r in found if isinstance(r, ClientUpdate)]
    assert len(set(norms)) == len(SIZES)
