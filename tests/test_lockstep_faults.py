"""What once went wrong, or could have, between clients that train together: each is held against one client at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim import rng
from fedsim.algorithms.fedprox import Proximal
from fedsim.training import OBJECTIVES, ClientFailure, ClientHalf, ClientUpdate, Device, LocalTraining, Trainer
from fedsim.training.arrays import model_arrays
from fedsim.training.choose import refusal
from fedsim.training.dpsgd import DPSGD
from fedsim.training.execution import ONE_AT_A_TIME, Execution
from fedsim.training.objectives import IGNORED_TARGET
from fedsim.types import ClientData, Params

SIZES = (12, 5, 9, 1, 12, 7, 3)
PLAIN = LocalTraining(epochs=2, batch_size=4, lr=0.1)
LOCKSTEP = Execution("lockstep", 4)
Data = Callable[[int], ClientData]


class Body(nn.Module):
    """Two dense layers; what is between them is each test's own."""

    def __init__(self, middle: Callable[[Tensor], Tensor] | nn.Module = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.last, self.middle = nn.Linear(6, 8), nn.Linear(8, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))


def rows(client: int) -> ClientData:
    draw = rng.generator(1, 0, client, "test data")
    x = torch.randn(SIZES[client], 6, generator=draw, dtype=torch.float64)
    return ClientData(client, x, torch.randint(3, (len(x),), generator=draw))


def spoilt(client: int, spoil: Callable[[ClientData], None], data: Data = rows) -> Data:
    """The data with those of one client changed in place."""

    def one(asked: int) -> ClientData:
        given = data(asked)
        if asked == client:
            spoil(given)
        return given

    return one


def trained(
    model: nn.Module,
    execution: Execution = LOCKSTEP,
    half: ClientHalf | None = None,
    data: Data = rows,
    settings: LocalTraining = PLAIN,
    objective: str = "classification",
    rule: DPSGD | None = None,
) -> list[ClientUpdate | ClientFailure]:
    """One round of every client."""
    parts = (model.double(), OBJECTIVES[objective], settings, half or ClientHalf(), 11)
    trainer = Trainer(*parts, local_steps=rule, execution=execution)
    start = {n: a.clone() for n, a in model_arrays(model).items()}
    found = trainer.train(start, range(len(SIZES)), data, lambda client: {}, 1)
    result = [
        r._replace(arrays={n: a.clone() for n, a in r.arrays.items()}) if isinstance(r, ClientUpdate) else r
        for r in found
    ]
    for name, array in model_arrays(model).items():
        array.copy_(start[name])
    return result


def check(model: nn.Module, execution: Execution = LOCKSTEP, **more: Any) -> list[int]:
    """Every client has the update that it has alone, or fails as it does alone; gives those that fail."""
    alone, together = trained(model, ONE_AT_A_TIME, **more), trained(model, execution, **more)
    for one, other in zip(alone, together, strict=True):
        if isinstance(one, ClientFailure) or isinstance(other, ClientFailure):
            assert one == other
            continue
        for name, array in one.arrays.items():
            assert torch.allclose(array, other.arrays[name], rtol=0, atol=1e-9, equal_nan=True), (one.client, name)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
    return [one.client for one in alone if isinstance(one, ClientFailure)]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that fails as one is no longer trained client by client, which would hide why."""

    def stop(self: Trainer, group: list[int], error: Exception) -> None:
        raise AssertionError(f"{group} were not trained together") from error

    monkeypatch.setattr(Trainer, "_tell_apart", stop)


def why_not(model: nn.Module, way: str = "lockstep", half: ClientHalf | None = None, **more: Any) -> str | None:
    """Why the rule does not take the model."""
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(6, 6, generator=draw), torch.randint(3, (6,), generator=draw)
    parts = (model.float(), OBJECTIVES["classification"], replace(PLAIN, **more), half or ClientHalf(), 11)
    return refusal(Execution(way, 2), Trainer(*parts).alone(), x, y)


# DP-SGD


def noise(size: int, std: float, round: int, client: int, purpose: str) -> Tensor:
    return torch.randn(size, generator=rng.generator(5, round, client, purpose)) * std


def chances(size: int, round: int, client: int, purpose: str) -> Tensor:
    return torch.rand(size, dtype=torch.float64, generator=rng.generator(6, round, client, purpose))


def private(**keys: Any) -> DPSGD:
    return DPSGD(lambda client: 0.3, noise, chances, **{"clip_norm": 0.3, "way": "fast"} | keys)


def test_a_poisson_batch_is_drawn_once() -> None:
    """The operating system, which draws under privacy.secure_rng, gives other rows the second time."""
    drawn: list[tuple[int, str]] = []

    def counted(size: int, round: int, client: int, purpose: str) -> Tensor:
        drawn.append((client, purpose))
        return chances(size, round, client, purpose)

    trained(Body(), rule=replace(private(), chances=counted))
    assert drawn and len(drawn) == len(set(drawn))


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
@pytest.mark.parametrize("most", [1, 2, 3, 1024])
def test_large_private_batches_are_taken_in_the_parts_that_a_client_takes_alone(
    most: int, clipping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.training.dpsgd.MAX_ROWS", most)
    model = Body(nn.Sequential(nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.3)))
    for settings in (PLAIN, replace(PLAIN, batch_size=1, max_steps=4)):  # with batches of one, most are empty
        assert check(model, settings=settings, rule=private(clipping=clipping)) == []


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("client", [0, 2, 5])
def test_a_row_that_is_not_drawn_does_not_count(client: int, batch: int) -> None:
    data = spoilt(client, lambda d: d.x[0].fill_(float("nan")))
    failed = check(Body(), data=data, settings=replace(PLAIN, batch_size=batch, max_steps=2), rule=private())
    assert set(failed) <= {client}


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("frozen", [("first",), ("last",), ("first", "last")])
def test_frozen_layers_and_dp_sgd(frozen: Iterable[str]) -> None:
    model = Body(nn.Linear(8, 8))
    for name in frozen:
        getattr(model, name).requires_grad_(False)
    assert check(model, rule=private()) == []


class SometimesTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        once = torch.tanh(self.layer(x))
        return self.layer(once) if bool((x.abs() > 50).any()) else once


def test_a_layer_that_is_called_twice_after_all_fails_its_client() -> None:
    data = spoilt(1, lambda d: d.x.mul_(1000))
    assert check(Body(SometimesTwice()), data=data, rule=private()) == [1]


def test_dp_sgd_does_not_leave_out_bfloat16_silently() -> None:
    x, y = torch.randn(6, 6), torch.randint(3, (6,))
    parts = (Body(), OBJECTIVES["classification"], PLAIN, ClientHalf(), 11)
    engine = Trainer(*parts, local_steps=private()).alone()
    assert refusal(Execution("lockstep", 2), engine, x, y) is None
    assert "own numbers" in (refusal(Execution("lockstep", 2, precision="bfloat16"), engine, x, y) or "")


# What a client holds


class Speaks(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table, self.series = nn.Embedding(5, 4), nn.LSTM(4, 6, batch_first=True)
        self.drop, self.last = nn.Dropout(dropout), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.series(self.table(x))[0]))


def lines(client: int) -> ClientData:
    draw = rng.generator(1, 0, client, "test lines")
    x, y = (torch.randint(5, (SIZES[client], 7), generator=draw) for _ in range(2))
    return ClientData(client, x, y)


@pytest.mark.parametrize("symbol", [-1, 5, 7])
@pytest.mark.parametrize("client", [0, 2, 4])
def test_a_symbol_that_is_none_is_not_read_from_another_clients_table(client: int, symbol: int) -> None:
    data = spoilt(client, lambda d: d.x[0].fill_(symbol), lines)
    assert check(Speaks(), data=data, objective="next_token") == [client]


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("dropped", [slice(0, 4), slice(None)])
@pytest.mark.parametrize("batch", [4, None])
@pytest.mark.parametrize("client", [0, 2, 4])
def test_targets_that_are_ignored_count_in_no_mean(client: int, batch: int | None, dropped: slice) -> None:
    def drop(data: ClientData) -> None:
        data.y[dropped] = IGNORED_TARGET

    settings = replace(PLAIN, batch_size=batch)
    for objective, data, model in (("classification", rows, Body()), ("next_token", lines, Speaks())):
        alone = trained(model, ONE_AT_A_TIME, data=spoilt(client, drop, data), settings=settings, objective=objective)
        found = trained(model, data=spoilt(client, drop, data), settings=settings, objective=objective)
        for one, other in zip(alone, found, strict=True):
            assert isinstance(one, ClientUpdate) and isinstance(other, ClientUpdate)
            assert max(float((a - other.arrays[n]).abs().max()) for n, a in one.arrays.items()) < 1e-9


# Layers


@pytest.mark.usefixtures("together")
def test_dropout_stays_in_lockstep_when_clients_are_done() -> None:
    assert check(Body(nn.Dropout(0.4))) == []
    assert why_not(Body(nn.Dropout(0.4))) is None


@pytest.mark.usefixtures("together")
def test_dropout_after_an_lstm_draws_what_it_draws_alone() -> None:
    assert check(Speaks(0.4), data=lines, objective="next_token") == []


class KeepsDropoutOff(Body):
    def train(self, mode: bool = True) -> KeepsDropoutOff:
        super().train(mode)
        self.middle.eval()  # type: ignore[union-attr]
        return self


@pytest.mark.usefixtures("together")
def test_dropout_that_the_model_turns_off_is_off() -> None:
    assert check(KeepsDropoutOff(nn.Dropout(0.4))) == []


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("execution", [ONE_AT_A_TIME, LOCKSTEP], ids=["one", "lockstep"])
def test_a_layer_in_place_does_not_change_what_a_client_holds(execution: Execution) -> None:
    model, data = nn.Sequential(nn.Hardswish(inplace=True), Body()), {c: rows(c) for c in range(len(SIZES))}
    found = trained(model, execution, data=data.__getitem__, settings=replace(PLAIN, batch_size=None))
    assert all(isinstance(one, ClientUpdate) for one in found)
    assert all(torch.equal(held.x, rows(client).x) for client, held in data.items())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("more", [{}, {"max_grad_norm": 0.1}])
def test_a_weight_may_be_one_number(more: dict[str, Any]) -> None:
    assert why_not(Body(Scaled()), "vmap", **more) is None
    assert check(Body(Scaled()), Execution("vmap", 4), settings=replace(PLAIN, **more)) == []


# What a client half may do


class WithItsOwn(Proximal):
    """Says nothing of being element by element, unlike what it comes from."""

    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        for gradient in gradients:
            gradient /= 1 + gradient.norm()


class PutsOthersInTheList(ClientHalf):
    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        gradients[:] = [gradient * (1 - 0.3 * gradient.norm()) for gradient in gradients]


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("half", [WithItsOwn(1.0), PutsOthersInTheList()], ids=["inherits", "list"])
def test_a_correction_is_the_clients_own(half: ClientHalf) -> None:
    assert check(Body(), half=half) == []


def test_a_subclass_that_says_so_anew_is_element_by_element() -> None:
    from fedsim.training.lockstep import is_elementwise

    class Again(WithItsOwn):
        elementwise = True

    assert [is_elementwise(half) for half in (ClientHalf(), Proximal(1.0), WithItsOwn(1.0), Again(1.0))] == [
        *(False, True, False, True)
    ]


class KeepsTheLiveModel(ClientHalf):
    def finish(self, device: Device, steps: int, lr: float) -> Params:
        return {name: array.detach() for name, array in device.model.named_parameters()}


def test_what_a_client_keeps_is_its_own() -> None:
    for update in trained(Body(), half=KeepsTheLiveModel()):
        assert isinstance(update, ClientUpdate)
        assert all(torch.equal(array, update.arrays[name]) for name, array in update.state.items())


class LooksAtTheLiveModel(ClientHalf):
    def begin(self, device: Device) -> dict[str, float]:
        self.live = list(device.model.parameters())
        return {}

    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        for gradient, live in zip(gradients, self.live, strict=True):
            gradient += 0.3 * live.detach()


class ChangesTheModel(ClientHalf):
    def begin(self, device: Device) -> dict[str, float]:
        with torch.no_grad():
            next(device.model.parameters()).mul_(2)
        return {}


class Draws(ClientHalf):
    def correct(self, gradients: list[Tensor], weights: list[Tensor], anchors: list[Tensor]) -> None:
        gradients[0] += 1e-6 * torch.randn_like(gradients[0])


@pytest.mark.parametrize(
    ("half", "words"),
    [(LooksAtTheLiveModel(), "updates are not"), (ChangesTheModel(), "updates are not"), (Draws(), "random numbers")],
    ids=["looks", "changes", "draws"],
)
@pytest.mark.parametrize("way", ["lockstep", "vmap"])
def test_a_client_half_that_lockstep_would_change_is_not_taken(half: ClientHalf, words: str, way: str) -> None:
    reason = why_not(Body(), way, half)
    assert reason is not None and "client half" in reason and words in reason
    assert not hasattr(half, "live"), "clients who do not exist leave nothing behind"


def test_a_client_half_that_fails_by_itself_is_no_reason() -> None:
    class Fails(ClientHalf):
        def begin(self, device: Device) -> dict[str, float]:
            raise RuntimeError("its battery is empty")

    assert why_not(Body(), half=Fails()) is None


# What the rule must see


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


def by_count(x: Tensor) -> Tensor:
    return x / len(x)


def soft(x: Tensor) -> Tensor:
    return x.softmax(0)


@pytest.mark.parametrize("middle", [centred, by_count, soft], ids=["mean", "len", "softmax"])
@pytest.mark.parametrize("way", ["lockstep", "vmap"])
def test_a_model_that_looks_across_its_batch_is_not_taken(middle: Callable[[Tensor], Tensor], way: str) -> None:
    """By torch.func neither: what fills up a batch would be seen."""
    assert "updates are not" in (why_not(Body(middle), way) or "")


def test_attention_over_the_batch_is_not_taken() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x, x)[0]

    assert "updates are not" in (why_not(Body(Attends()), "vmap") or "")


@pytest.mark.parametrize(
    "middle",
    [lambda x: x + 1e-5 * torch.randn_like(x), lambda x: x * (1 + 1e-5 * torch.rand(())), lambda x: F.dropout(x, 0.3)],
    ids=["faint", "scalar", "functional"],
)
def test_a_model_that_draws_random_numbers_is_not_taken(middle: Callable[[Tensor], Tensor]) -> None:
    assert "random" in (why_not(Body(middle)) or "") and "random" in (why_not(Body(middle), "vmap") or "")


def test_hooks_that_did_nothing_when_the_model_was_tried_are_seen() -> None:
    hooked, patched, before = Body(), Body(), Body()
    hooked.first.weight.register_hook(lambda gradient: gradient.clamp(-5, 5))
    patched.first.forward = lambda x: F.linear(x.clamp(-9, 9), patched.first.weight, patched.first.bias)  # type: ignore[method-assign]
    before.first.register_full_backward_pre_hook(lambda module, gradients: (gradients[0].clamp(-5, 5),))
    assert "hook on its gradient" in (why_not(hooked) or "") and "hook on its gradient" in (
        why_not(hooked, "vmap") or ""
    )
    assert "forward of its own" in (why_not(patched) or "")
    assert "has hooks" in (why_not(before) or "")


def by_dimension(weights: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """As is often done; stacked, a bias has two dimensions."""
    few, many = [w for w in weights if w.dim() < 2], [w for w in weights if w.dim() >= 2]
    return torch.optim.AdamW([{"params": few, "weight_decay": 0.0}, {"params": many, "weight_decay": 1e-4}], lr=lr)


def test_an_optimiser_of_several_groups_is_not_taken() -> None:
    assert "unlike others" in (why_not(Body(), lr=0.01, optimizer=by_dimension) or "")


def test_nothing_is_taken_that_could_not_be_tried() -> None:
    assert "could not be tried" in (why_not(Body(lambda x: x / 0 * 0)) or "")


def test_a_group_that_falls_apart_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = spoilt(0, lambda d: d.y.fill_(7), spoilt(4, lambda d: d.y.fill_(7)))
        assert check(Body(), Execution("lockstep", 2), data=data) == [0, 4]
        assert caplog.text.count("could not be trained together") == 1
