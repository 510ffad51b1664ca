"""Cells of a sweep that train in one lockstep batch learn what each learns by itself."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import config, run_into, tiny_dataset
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsim.build import build
from fedsim.data.dataset import Dataset
from fedsim.experiment import run
from fedsim.parts import Parts
from fedsim.replies import Reply
from fedsim.server import Server
from fedsim.sweeps.alongside import Alongside
from fedsim.sweeps.cells import Outcome, run_cell
from fedsim.sweeps.pack import Pack
from fedsim.training import ClientHalf, LocalTraining
from fedsim.training.group import Recipe, alike
from fedsim.training.lockstep import Lockstep
from fedsim.training.updates import Folded
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
WHOLE_BATCHES = ("client.batch_size=null", "client.epochs=3")  # which is accounted for in no time


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


def packed(cells: Sequence[tuple[str, ...]], double: bool = False, most: int = 99) -> tuple[list[Any], list[int]]:
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
    "states": [("model=mlp", "strategy=local_only", f"seed={seed}") for seed in range(3)],
    "dropout": [("model=mlp", "model.dropout=0.5", f"seed={seed}") for seed in range(3)],
    "dropout under noise": [
        ("model=mlp", "model.dropout=0.5", *PRIVATE[:2], *WHOLE_BATCHES, f"seed={seed}") for seed in range(3)
    ],
    "whole batches": [
        ("model=mlp", "client.batch_size=null", "client.momentum=0.9", f"population.num_clients={n}") for n in (6, 40)
    ],
    "empty cohorts": [("model=mlp", "sampler=poisson", "sampler.cohort_size=2", f"seed={seed}") for seed in range(4)],
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


def test_packed_cells_are_given_the_sums_of_their_own_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client's arrays are written out, however many runs train together."""
    folded, add = list[int](), Reply.add_folded

    def noted(self: Reply, one: Folded) -> None:
        folded.append(len(one.updates))
        add(self, one)

    monkeypatch.setattr(Reply, "add_folded", noted)
    monkeypatch.setattr(Reply, "add", lambda self, update: pytest.fail(f"client {update.client} came by itself"))
    together, widths = packed([("model=mlp", f"seed={seed}") for seed in range(4)])
    assert all(isinstance(found, dict) for found in together), together
    assert max(widths) > 5 and sum(folded) == 4 * 3 * 5 and max(folded) == 5


@pytest.mark.parametrize(
    ("width", "more", "expected"),
    [(8, (), {5}), (8, ("privacy=user", "privacy.noise_multiplier=1"), {8}), (4, (), {4})],
    ids=["fit", "wanted one by one", "never fit"],
)
def test_clients_that_come_as_one_sum_are_not_parted_where_they_fit(
    width: int, more: tuple[str, ...], expected: set[int]
) -> None:
    """Three runs ask for five clients each, in each of three rounds."""
    _, widths = packed(
        [("model=mlp", f"grid.width={width}", "grid.chunk_size=8", *more, f"seed={s}") for s in range(3)]
    )
    assert sum(widths) == 45 and expected == set(widths[:2]), widths


def test_cells_that_do_not_train_alike_are_kept_apart() -> None:
    kinds = ("model=linear", "client.epochs=2", "strategy=fedprox", "client.momentum=0.5", "client.weight_decay=0.1")
    cells = [("model=mlp", kind) for kind in kinds] + [("model=mlp", "client.weight_decay=0.1", "client.lr=0.2")]
    together, widths = packed(cells, double=True)
    assert max(widths) <= 5
    for found, overrides in zip(together, cells, strict=True):
        assert gap(found, play(made(overrides, double=True))) < 1e-9


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
        Alongside(Pack(2), 2).build(config(*SMALL, "logger=mlflow"))


def test_less_memory_trains_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    train, cells = Lockstep.train_jobs, [("model=mlp", f"seed={seed}") for seed in range(3)]
    expected, widths = packed(cells)
    assert max(widths) > 8
    sizes = []

    def needs_memory(self: Lockstep, jobs: Any) -> Any:
        sizes.append(len(jobs))
        if len(jobs) > 6:
            raise torch.OutOfMemoryError
        return train(self, jobs)

    monkeypatch.setattr(Lockstep, "train_jobs", needs_memory)
    for one, other in zip(packed(cells)[0], expected, strict=True):
        assert gap(one, other) < 1e-5
    assert sum(size > 6 for size in sizes) <= 3  # it is not tried again and again
    assert sizes.count(1) < 3 and "memory ran out" in caplog.text


class Drawn(nn.Module):
    """A model that holds numbers of its own seed which are neither weights nor buffers."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.features = torch.randn(shape[0], 16)
        self.last = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cos(x @ self.features.to(x)))


def drawn(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return Drawn(input_shape, num_outputs)


def test_models_that_hold_other_numbers_beside_their_weights_are_kept_apart() -> None:
    base = ("dataset=custom", "dataset._target_=helpers.tiny_dataset", "partition=iid", "model=custom")
    cells = [(*base, "model._target_=test_packed.drawn", f"seed={seed}") for seed in range(3)]
    together, widths = packed(cells)
    assert max(widths) <= 5
    for found, overrides in zip(together, cells, strict=True):
        assert gap(found, play(made(overrides))) < 1e-5


def alone_in_a_pack(use: Callable[[Pack, Parts], Any]) -> Any:
    """What `use` gives, as the only cell of a pack that has adopted its trainer."""
    pack, outcomes = Pack(2), list[Any]()

    def cell() -> Any:
        parts = made(("model=mlp",), 8)
        pack.adopt(parts.trainer, "mlp")
        return use(pack, parts)

    pack.run([cell], lambda number, outcome: outcomes.append(outcome))
    if isinstance(outcomes[0], BaseException):
        raise outcomes[0]
    return outcomes[0]


def asked(parts: Parts, clients: list[int], trainer: Any = None) -> Any:
    arrays, data = parts.server.state.arrays, parts.population.training_data
    return (trainer or parts.trainer).train(arrays, clients, data, lambda client: {}, 1)


def test_clients_that_a_run_broke_off_are_not_trained_in_the_place_of_others() -> None:
    def broken_off(pack: Pack, parts: Parts) -> list[int]:
        first = asked(parts, list(range(12)))  # more than train together
        next(first)
        second = asked(parts, [7, 5])
        found = [next(second).client]
        first.close()  # as late as it is when an error's traceback held it
        return found + [update.client for update in second]

    assert alone_in_a_pack(broken_off) == [7, 5]


def test_a_trainer_that_is_not_the_one_adopted_trains_by_its_own_rules() -> None:
    def changed(pack: Pack, parts: Parts) -> tuple[list[Params], list[Params]]:
        other = replace(parts.trainer, settings=replace(parts.settings, momentum=0.9))
        assert other.pack is pack
        return arrays_of(asked(parts, [0, 1], other)), arrays_of(asked(parts, [0, 1], replace(other, pack=None)))

    for found, expected in zip(*alone_in_a_pack(changed), strict=True):
        assert gap(found, expected) < 1e-6


def arrays_of(updates: Any) -> list[Params]:
    return [{name: array.clone() for name, array in update.arrays.items()} for update in updates]


@pytest.mark.usefixtures("no_pictures")
def test_what_a_cell_held_is_let_go_when_it_ends(tmp_path: Path) -> None:
    company, held, most = Alongside(Pack(1), 4), list[Any](), list[int]()
    begin = company.begin

    def noted(session: Any) -> None:
        begin(session)
        held.extend([weakref.ref(session), weakref.ref(session.parts.trainer), weakref.ref(session.parts.population)])

    company.begin = noted  # type: ignore[method-assign]
    cells = [("model=mlp", f"model.hidden=[{width}]") for width in (4, 5, 6)]
    company.pack.run(
        [lambda one=one: in_company(one, tmp_path, company) for one in cells],
        lambda *_: most.append(len(company.pack._kinds)),
    )
    gc.collect()
    assert len(held) == 9 and not [one for one in held if one() is not None]
    assert most == [0, 0, 0]


def counted_dataset(rows: int = 160) -> Dataset:
    READ.append(rows)
    return tiny_dataset(rows)


READ: list[int] = []


def test_cells_share_a_dataset_and_let_go_of_it() -> None:
    base = ("dataset=custom", "dataset._target_=test_packed.counted_dataset", "model=linear", "partition=iid")
    company = Alongside(Pack(2), 2)
    READ.clear()

    def cell(*overrides: str) -> Any:
        return weakref.ref(company.build(config(*SMALL, *base, *overrides)).population.dataset)

    outcomes: list[Any] = []
    tasks = [lambda: cell("seed=0"), lambda: cell("seed=1"), lambda: cell("+dataset.rows=80")]
    company.pack.run(tasks, lambda number, outcome: outcomes.append(outcome))
    gc.collect()
    assert READ == [160, 80] and [outcome() is None for outcome in outcomes] == [True, True, False]


# Whole runs


def in_company(overrides: tuple[str, ...], base: Path, company: Alongside) -> Outcome:
    def with_company(cfg: Any, folder: Path, command: str) -> Any:
        return run(cfg, folder, command, company)

    return run_cell(config(*SMALL, *overrides), base / "-".join(overrides), overrides, with_company)


def run_in_company(cells: Sequence[tuple[str, ...]], base: Path, company: Alongside) -> list[Outcome]:
    outcomes: dict[int, Any] = {}
    company.pack.run([lambda one=one: in_company(one, base, company) for one in cells], outcomes.__setitem__)
    assert all(isinstance(outcome, Outcome) for outcome in outcomes.values()), outcomes
    return [outcomes[number] for number in sorted(outcomes)]


WHOLE: dict[str, tuple[str, ...]] = {
    "plain": ("client.momentum=0.5",),
    "states": ("strategy=local_only",),
    "private": (*PRIVATE[:2], *WHOLE_BATCHES),
    "baselines": ("baselines=[central]",),
    "audited": (
        "privacy=user",
        "privacy.noise_multiplier=1",
        "privacy.clip_norm=0.1",
        "audit=canary",
        "audit.canaries=20",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.usefixtures("no_pictures")
def test_cells_stopped_at_different_rounds_go_on_together(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes in the middle of one cell's third round, when another has not begun and a third is new the next time."""
    cells = [("model=mlp", *WHOLE[name], "rounds=5", f"seed={seed}") for seed in range(3)]
    company, played = Alongside(Pack(2), 3), list[tuple[int, int]]()
    original = Server.play_round

    def play_round(self: Server, grid: Any, nodes: Any, round: int, last: int) -> Any:
        if not self.algorithm.pools_data:  # no baseline's
            played.append((self.seed, round))
            if self.seed == 0 and round == 3:
                company.stop()
        return original(self, grid, nodes, round, last)

    with monkeypatch.context() as patch:
        patch.setattr(Server, "play_round", play_round)
        first = run_in_company(cells, tmp_path / "packed", company)
    assert [outcome.state for outcome in first] == ["stopped"] * 2 and {seed for seed, _ in played} == {0, 1}
    monkeypatch.setattr(Server, "play_round", play_round)
    company, played[:] = Alongside(Pack(3), 3), []
    monkeypatch.setattr(company, "stop", lambda: None)
    assert [outcome.state for outcome in run_in_company(cells, tmp_path / "packed", company)] == ["finished"] * 3
    assert (0, 1) not in played and (2, 1) in played
    for one in cells:
        there = tmp_path / "packed" / "-".join(one)
        summary = run_into(tmp_path / "alone" / "-".join(one), config(*SMALL, *one))
        found, expected = (
            load_file(base / "model.safetensors") for base in (there, tmp_path / "alone" / "-".join(one))
        )
        assert gap(found, expected) < 1e-5
        assert json.loads((there / "summary.json").read_text())["epsilon"] == summary["epsilon"]


@pytest.mark.usefixtures("no_pictures")
def test_ctrl_c_while_a_cell_is_made_or_finished_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [("model=mlp", "rounds=2", "baselines=[central]", f"seed={seed}") for seed in range(2)]
    making = Alongside(Pack(2), 2)
    build_whole = making.build
    monkeypatch.setattr(making, "build", lambda cfg: (making.stop(), build_whole(cfg))[1])
    first = run_in_company(cells, tmp_path, making)
    assert [outcome.state for outcome in first] == ["stopped"]  # the other was not begun
    assert not list(tmp_path.rglob("round_*"))
    finishing = Alongside(Pack(2), 2)
    from fedsim.results.run import RunFolder

    write = RunFolder.write
    monkeypatch.setattr(RunFolder, "write", lambda self, *words: (finishing.stop(), write(self, *words))[1])
    second = run_in_company(cells, tmp_path, finishing)
    assert "stopped" in [outcome.state for outcome in second] and list(tmp_path.glob("*/summary.json"))
    monkeypatch.setattr(RunFolder, "write", write)
    third = run_in_company(cells, tmp_path, Alongside(Pack(2), 2))
    assert [outcome.state for outcome in third] == ["finished"] * 2
    assert len(list(tmp_path.glob("*/baselines/central/summary.json"))) == 2
