"""Cells of a sweep that train in one lockstep batch learn what each learns by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import config
from torch import Tensor, nn

from fedsim.build import build
from fedsim.parts import Parts
from fedsim.sweeps.pack import Pack
from fedsim.sweeps.together import Alongside
from fedsim.training import ClientHalf, LocalTraining
from fedsim.training.group import Recipe, alike
from fedsim.types import FedsimError, Params

SMALL = (
    "dataset=digits",
    "population.num_clients=12",
    "sampler.cohort_size=5",
    "rounds=3",
    "grid=inprocess",
    "device=cpu",
)
PRIVATE = ("privacy=example", "privacy.noise_multiplier=0.6", "client.batch_size=8")


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


def made(overrides: tuple[str, ...], together: int = 1, double: bool = False) -> Parts:
    """A cell's parts; double: in float64, in which rounding does not hide a fault."""
    parts = build(config(*SMALL, *overrides), together)
    if double:
        parts.model.double()
        parts.server.state.arrays = {name: array.double() for name, array in parts.server.state.arrays.items()}
        parts.population.preprocess = nn.Sequential(parts.population.preprocess, Double())
    return parts


def play(parts: Parts) -> Params:
    grid = parts.grid()
    try:
        parts.server.run(grid)
    finally:
        grid.close()
    return parts.server.state.arrays


def packed(cells: list[tuple[str, ...]], double: bool = False, most: int = 99) -> tuple[list[Any], list[int]]:
    """What each cell gave, and the sizes of the groups that were trained."""
    pack, widths, outcomes = Pack(most), list[int](), dict[int, Any]()
    whole = pack._train_group

    def counted() -> None:
        before = [len(cell.jobs) for cell in pack._cells]
        whole()
        widths.append(sum(before) - sum(len(cell.jobs) for cell in pack._cells))

    pack._train_group = counted  # type: ignore[method-assign]

    def cell(overrides: tuple[str, ...]) -> Params:
        parts = made(overrides, len(cells), double)
        pack.adopt(parts.trainer, str(parts.model))
        return play(parts)

    pack.run([lambda one=one: cell(one) for one in cells], outcomes.__setitem__)
    return [outcomes[number] for number in range(len(cells))], widths


def gap(one: Params, other: Params) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - array).norm() / array.norm()) for name, array in other.items())


SWEEPS: dict[str, list[tuple[str, ...]]] = {
    "seeds": [("model=mlp", f"seed={seed}") for seed in range(4)],
    "rates": [("model=mlp", f"client.lr={lr}", "client.lr_decay=0.9") for lr in (0.05, 0.1, 0.3)],
    "rates with momentum": [("model=mlp", f"client.lr={lr}", "client.momentum=0.5") for lr in (0.05, 0.1)],
    "populations": [
        ("model=linear", f"population.num_clients={n}", f"sampler.cohort_size={n // 2}") for n in (4, 9, 20)
    ],
    "noise": [
        ("model=mlp", *PRIVATE, f"privacy.noise_multiplier={z}", f"privacy.clip_norm={c}")
        for z, c in ((0.5, 1), (2, 0.3))
    ],
    "private rates": [("model=mlp", *PRIVATE, f"client.lr={lr}") for lr in (0.05, 0.5)],
    "proximal": [("model=mlp", "strategy=fedprox", f"seed={seed}") for seed in range(3)],
    "own layers' numbers": [("model=mlp", "strategy=qfedavg", f"seed={seed}") for seed in range(3)],
    "users": [
        ("model=mlp", "privacy=user", "sampler=poisson", "privacy.noise_multiplier=1", f"seed={seed}")
        for seed in range(3)
    ],
    "adamw": [("model=mlp", "client=adamw", f"seed={seed}") for seed in range(3)],
}


@pytest.mark.parametrize("name", SWEEPS)
def test_packed_cells_are_those_alone(name: str) -> None:
    cells = SWEEPS[name]
    together, widths = packed(cells, double=True)
    assert max(widths) > 5  # more than any one cell asks for
    for found, overrides in zip(together, cells, strict=True):
        assert not isinstance(found, BaseException), found
        # what leaves a device under a mechanism of the server's is float32, whatever the model is
        assert gap(found, play(made(overrides, double=True))) < (1e-7 if name == "users" else 1e-9)


def test_cells_that_do_not_train_alike_are_kept_apart() -> None:
    kinds = ("model=linear", "client.epochs=2", "strategy=fedprox", "client.momentum=0.5", "client.weight_decay=0.1")
    cells = [("model=mlp", kind) for kind in kinds] + [("model=mlp", "client.weight_decay=0.1", "client.lr=0.2")]
    together, widths = packed(cells)
    assert max(widths) <= 5
    for found, overrides in zip(together, cells, strict=True):
        assert gap(found, play(made(overrides))) < 1e-4


def test_a_cell_that_raises_leaves_the_others_alone() -> None:
    cells = [("model=mlp", "seed=1"), ("model=mlp", "client.lr=1e30", "rounds=3"), ("model=mlp", "seed=2")]
    together, _ = packed(cells)
    assert isinstance(together[1], Exception)
    for place in (0, 2):
        assert gap(together[place], play(made(cells[place]))) < 1e-4


def test_few_at_a_time_give_the_same() -> None:
    cells = [("model=linear", f"seed={seed}") for seed in range(5)]
    for one, other in zip(packed(cells)[0], packed(cells, most=2)[0], strict=True):
        assert gap(one, other) < 1e-5


def test_a_group_that_fails_is_trained_cell_by_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsim.training.lockstep import Lockstep

    train = Lockstep.train_jobs

    def fails(self: Lockstep, jobs: Any) -> Any:
        if len({job.recipe.seed for job in jobs}) > 1:
            raise RuntimeError("together they do not fit")
        return train(self, jobs)

    cells = [("model=mlp", f"seed={seed}") for seed in range(3)]
    expected, _ = packed(cells)
    monkeypatch.setattr(Lockstep, "train_jobs", fails)
    for one, other in zip(packed(cells)[0], expected, strict=True):
        assert gap(one, other) < 1e-4


def test_client_halves_are_alike_only_where_all_they_hold_can_be_compared() -> None:
    class Held(ClientHalf):
        def __init__(self, value: Any) -> None:
            self.value = value

    def recipe(half: ClientHalf) -> Recipe:
        return Recipe(LocalTraining(), half, 0, None)

    assert alike(recipe(Held(0.1)), recipe(Held(0.1)))
    assert not alike(recipe(Held(0.1)), recipe(Held(0.2)))
    assert not alike(recipe(Held(0.1)), recipe(ClientHalf()))
    long = torch.zeros(5_000)  # two of these look alike in words, whatever they hold
    assert not alike(recipe(Held(long)), recipe(Held(long + (torch.arange(5_000) == 2_500))))


def test_a_logger_that_follows_one_run_is_refused() -> None:
    with pytest.raises(FedsimError, match="logger=mlflow"):
        Alongside(Pack(2), 2, {}, []).build(config(*SMALL, "logger=mlflow"))
