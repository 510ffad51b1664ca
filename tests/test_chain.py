"""Dense networks by hand: held against autograd, and left to autograd where they are more than dense layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fedsim.models import CNN, MLP, Linear
from fedsim.training import OBJECTIVES, ClientHalf, ClientUpdate, LocalTraining
from fedsim.training.arrays import model_arrays
from fedsim.training.chain import Chain, chain_of, links_of
from fedsim.training.dpsgd import DPSGD
from fedsim.training.lockstep import Lockstep
from fedsim.training.objectives import IGNORED_TARGET, classification, client_gradients, client_losses, regression
from fedsim.training.stack import Stack
from fedsim.types import ClientData, Params

SIZES = (12, 5, 9, 1)


class Shouting(nn.Sequential):
    """A Sequential with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "2NN": lambda: MLP((6,), 3, hidden=(8, 5)),
    "linear": lambda: Linear((6,), 3),
    "a layer alone": lambda: nn.Linear(6, 3),
    "no ReLU between, no bias": lambda: nn.Sequential(
        nn.Linear(6, 4, bias=False), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)
    ),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), nn.Linear(4, 3)),
}


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model


def frozen() -> nn.Module:
    model = MLP((6,), 3, hidden=(4,))
    next(model.parameters()).requires_grad_(False)
    return model


def hooked() -> nn.Module:
    model = MLP((6,), 3, hidden=(4,))
    model.register_forward_hook(lambda module, given, out: out + 1)
    return model


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: CNN((1, 16, 16), 3, channels=(2, 2), hidden=4),
    "dropout": lambda: MLP((6,), 3, hidden=(4,), dropout=0.5),
    "another activation": lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)),
    "a ReLU at the end": lambda: nn.Sequential(nn.Linear(6, 3), nn.ReLU()),
    "a forward of its own": lambda: Shouting(nn.Linear(6, 3)),
    "a layer used twice": lambda: nn.Sequential(*[nn.Linear(6, 6)] * 2),
    "a weight used twice": tied,
    "a weight that is not trained": frozen,
    "a hook": hooked,
}


@pytest.mark.parametrize("name", CHAINS)
def test_dense_networks_are_chains(name: str) -> None:
    assert links_of(CHAINS[name]()) is not None


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks_are_not(name: str) -> None:
    assert links_of(OTHERS[name]()) is None


def made(model: nn.Module) -> Chain | None:
    return chain_of(Stack(model, 2), model)


def test_inputs_of_several_positions_are_left_to_autograd() -> None:
    chain = made(nn.Linear(6, 3))
    assert chain is not None and chain.takes(torch.zeros(4, 6)) and not chain.takes(torch.zeros(4, 2, 6))
    flattening = made(MLP((2, 3), 3))
    assert flattening is not None and flattening.takes(torch.zeros(4, 2, 3))


def data(task: str) -> Callable[[int], ClientData]:
    def of(client: int) -> ClientData:
        source = torch.Generator().manual_seed(client)
        x = torch.randn(SIZES[client], 6, dtype=torch.float64, generator=source)
        if task == "regression":
            return ClientData(client, x, x.sum(1))
        y = torch.randint(3, (SIZES[client],), generator=source)
        y[0] = IGNORED_TARGET if client == 0 else y[0]  # a label that is not known
        return ClientData(client, x, y)

    return of


def trained(make: Callable[[], nn.Module], task: str, by_hand: bool, private: bool) -> list[Params]:
    torch.manual_seed(3)
    model = make().double()
    settings = LocalTraining(epochs=2, batch_size=4, lr=0.3)
    noise = DPSGD(
        lambda client: 0.5,
        lambda size, std, *names: torch.full((size,), std * 0.01),
        lambda size, round, client, purpose: torch.rand(size, generator=torch.Generator().manual_seed(client)).double(),
        clip_norm=0.7,
        way="fast",
    )
    settings = settings if private else replace(settings, weight_decay=0.1)
    parts = (model, OBJECTIVES[task], settings, ClientHalf(), 11, 1, noise if private else None)
    made = Lockstep(Stack(model, 4), *parts)
    assert made.chain is not None
    if not by_hand:
        made.chain = None
    start = {name: array.clone() for name, array in model_arrays(model).items()}
    found = made.train(start, range(4), data(task), lambda client: {}, 1)
    assert all(isinstance(one, ClientUpdate) for one in found)
    return [{n: a.clone() for n, a in one.arrays.items()} for one in found if isinstance(one, ClientUpdate)]


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_gives_what_autograd_gives(name: str, task: str, private: bool) -> None:
    def make() -> nn.Module:
        model = CHAINS[name]()
        return model if task == "classification" else nn.Sequential(model, nn.Linear(3, 1))

    ours, theirs = (trained(make, task, by_hand, private) for by_hand in (True, False))
    for one, other in zip(ours, theirs, strict=True):
        for key, array in one.items():
            torch.testing.assert_close(array, other[key], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [4, 2, 1]], ids=["full", "filled up"])
@pytest.mark.parametrize("objective", [classification, regression])
def test_gradients_of_client_losses_are_autograds(
    objective: Callable[[Tensor, Tensor], Tensor], sizes: list[int]
) -> None:
    torch.manual_seed(1)
    outputs = torch.randn(12, 3 if objective is classification else 1, dtype=torch.float64, requires_grad=True)
    y = torch.randint(3, (12,)) if objective is classification else torch.randn(12, dtype=torch.float64)
    if objective is classification:
        y[1] = IGNORED_TARGET
        filled = torch.arange(4) >= torch.tensor(sizes)[:, None]
        y[filled.flatten()] = IGNORED_TARGET  # as a batch that is filled up has it
    expected = client_losses(objective, outputs, y, 3, sizes)
    (gradient,) = torch.autograd.grad(expected.sum(), outputs)
    losses, ours = client_gradients(objective, outputs.detach(), y, 3, sizes)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(ours, gradient, rtol=1e-13, atol=1e-16)


def test_a_batch_of_which_no_target_counts_has_no_gradient() -> None:
    outputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([IGNORED_TARGET, IGNORED_TARGET, 1, IGNORED_TARGET])
    (expected,) = torch.autograd.grad(client_losses(classification, outputs, y, 2, [2, 2]).sum(), outputs)
    losses, ours = client_gradients(classification, outputs.detach(), y, 2, [2, 2])
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-16)
    assert not ours[:2].any() and losses[0].isnan() and losses[1].isfinite()


def test_a_target_that_is_no_class_is_refused() -> None:
    with pytest.raises((RuntimeError, IndexError)):
        client_gradients(classification, torch.zeros(2, 3), torch.tensor([0, 3]), 1, [2])
    with pytest.raises((RuntimeError, IndexError)):
        client_gradients(classification, torch.zeros(2, 3), torch.tensor([0, -1]), 1, [2])
