"""Promises on streams: held against dp-accounting by hand-derived cases, and against every example's own history."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pandas as pd
import pytest
import torch
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from helpers import parts, play, resume, run_into, tiny
from test_resume import model_of

from fedsim.parts import Parts
from fedsim.privacy import accounting
from fedsim.privacy.accounted import STREAM_OUTSIDE
from fedsim.privacy.evidence import gaussian_mu_lower_bound
from fedsim.privacy.exposure import Exposure, front
from fedsim.privacy.noise import NoiseSource
from fedsim.privacy.streamed_example import StreamedExample
from fedsim.results.privacy_rows import rows_of
from fedsim.streams.arrivals import Bursts, Poisson
from fedsim.streams.population import StreamedPopulation
from fedsim.streams.stream import Stream
from fedsim.training import LocalTraining
from fedsim.training.updates import ClientUpdate
from fedsim.types import ClientData, FedsimError

pytestmark = pytest.mark.usefixtures("no_pictures")

DELTA = 1e-3
STREAM = (
    *("+dataset.rows=2000", "streams=steady", "streams.rate=5", "population.holdout=0", "client.batch_size=5"),
    *("privacy=example", f"privacy.delta={DELTA}"),
)
"""Eight clients of 187 rows, of which five come in each round."""


@cache
def composed(z: float, *steps: tuple[float, int]) -> float:
    """Epsilon by dp-accounting's own accountant of steps (rate, how many) of DP-SGD."""
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    for rate, count in steps:
        gaussian = dp_accounting.GaussianDpEvent(z)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian, count)
    return float(accountant.get_epsilon(DELTA))


def protection_of(made: Parts) -> StreamedExample:
    assert isinstance(made.server.protection, StreamedExample)
    return made.server.protection


def own_steps(
    stream: Stream, training: LocalTraining, client: int, rounds: list[int]
) -> dict[int, Counter[tuple[float, int]]]:
    """Of every position that was trained on in these rounds, its steps by rate: from `held` alone."""
    found: dict[int, Counter[tuple[float, int]]] = {}
    for round in rounds:
        held = stream.held(client, round)
        if len(held):
            rate = min(training.batch_size or len(held), len(held)) / len(held)
            for position in held.tolist():
                found.setdefault(position, Counter())[rate] += training.steps(len(held))
    return found


MEMORIES = [
    Poisson(rate=3, memory="once", label_delay=1.5, label_delay_kind="geometric"),
    Poisson(rate=3, memory="all", label_missing=0.2),
    Bursts(rate=3, memory="window", memory_size=8, label_delay=2, label_delay_kind="geometric"),
    Poisson(rate=3, memory="reservoir", memory_size=8, join=4),
    Bursts(rate=3, memory="decayed", memory_size=8, half_life=2),
]


@pytest.mark.parametrize("arrivals", MEMORIES, ids=lambda one: one.memory)
def test_what_is_held_through_a_run_is_what_is_held_in_each_round(arrivals: Any) -> None:
    stream = Stream(arrivals, 5, np.array([60, 0, 25]))
    for client in range(3):
        sizes, since = stream.held_through(client, 15)
        first: dict[int, int] = {}
        gone: set[int] = set()
        for round in range(1, 16):
            held = set(stream.held(client, round).tolist())
            assert not held & gone, "a memory took up again what it had let go"
            gone |= set(first) - held
            first |= {position: round for position in held if position not in first}
            assert sizes[round] == len(held)
            assert since[round] == min((first[position] for position in held), default=round)
        labels = stream.labelled(client, np.array(sorted(first), dtype=np.int64))
        assert labels.tolist() == [first[position] for position in sorted(first)]


@pytest.mark.parametrize("arrivals", MEMORIES, ids=lambda one: one.memory)
def test_accounts_are_those_of_the_examples_that_were_trained_on_most(arrivals: Any) -> None:
    stream, training = Stream(arrivals, 5, np.array([60, 25])), LocalTraining(batch_size=4, epochs=2)
    exposure = Exposure.of(stream, training, 15)
    draw = np.random.default_rng(1)
    times = (draw.random((2, 16)) < 0.6) & exposure.held
    owners, usages = exposure.accounts(np.arange(2), times.astype(np.int64))
    for client in range(2):
        ours = [exposure.mechanism(usage, 1.0).parts for usage in usages[owners == client]]
        every = own_steps(stream, training, client, np.flatnonzero(times[client]).tolist())
        each = [tuple(sorted(steps.items(), reverse=True)) for steps in every.values()]
        assert set(ours) <= set(each)
        for steps in each:  # every example's steps are among those of one that is accounted for
            assert any(all(dict(our).get(rate, 0) >= count for rate, count in steps) for our in ours)
    for round in range(1, 16):
        asked = np.flatnonzero(exposure.held[:, round])
        before = times.astype(np.int64)
        before[:, round:] = 0
        for client, usage in zip(asked, exposure.account_in(asked, before[asked], round), strict=True):
            trained = [*np.flatnonzero(before[client]).tolist(), round]
            every = own_steps(stream, training, int(client), trained)
            most = max((every[p] for p in stream.held(int(client), round).tolist()), key=lambda one: one.total())
            assert exposure.mechanism(usage, 1.0).parts == tuple(sorted(most.items(), reverse=True))


def test_only_covered_accounts_are_left_out() -> None:
    """Of steps at rates that fall; epsilon of what is left out is never the largest."""
    usages = np.array([[0, 3, 0], [1, 2, 0], [0, 2, 9], [2, 0, 0], [0, 0, 9], [0, 3, 0]])
    left = front(usages)
    assert sorted(map(tuple, left.tolist())) == [(0, 2, 9), (1, 2, 0), (2, 0, 0)]
    rates = (0.9, 0.5, 0.1)
    epsilons = [composed(2.0, *[(q, int(n)) for q, n in zip(rates, usage, strict=True) if n]) for usage in usages]
    kept = [composed(2.0, *[(q, int(n)) for q, n in zip(rates, usage, strict=True) if n]) for usage in left]
    assert max(kept) == max(epsilons)
    many = np.random.default_rng(0).integers(0, 6, (2000, 3))
    sums, best = many.cumsum(1), front(many).cumsum(1)
    assert all((best >= one).all(1).any() for one in sums)


def test_seen_once_costs_one_round_however_many_there_are() -> None:
    """Five examples a round in batches of 2: three steps at a rate of 2/5, by hand."""
    made = parts(*STREAM, "rounds=30", "streams.memory=once", "client.batch_size=2", "privacy.noise_multiplier=1.2")
    by_hand = composed(1.2, (2 / 5, 3))
    play(made)
    rows, ledger = made.server.state.rows, protection_of(made).ledger()
    assert [row["epsilon"] for row in rows] == pytest.approx([by_hand] * 30, rel=1e-3)
    assert ledger["epsilon"] == pytest.approx(by_hand, rel=1e-3)
    assert protection_of(made).client_epsilons(8) == pytest.approx([by_hand] * 8, rel=1e-3)
    assert (ledger["unit"], ledger["adjacency"], ledger["rounds"]) == ("example", "zero-out", 30)
    assert STREAM_OUTSIDE in ledger["caveats"]


def test_a_window_of_three_rounds_costs_three_rounds() -> None:
    """Fifteen examples in memory in batches of 5: an example is in three rounds of three steps at 1/3, later ones no less."""
    made = parts(*STREAM, "rounds=12", "streams.memory_size=15", "privacy.noise_multiplier=1.5")
    play(made)
    rows = [row["epsilon"] for row in made.server.state.rows]
    # while the memory fills up: all five in one step, then two steps at 1/2, then three at 1/3
    early = [composed(1.5, *steps) for steps in ([(1, 1)], [(1, 1), (1 / 2, 2)], [(1, 1), (1 / 2, 2), (1 / 3, 3)])]
    steady = composed(1.5, (1 / 3, 9))
    assert rows[:3] == pytest.approx(early, rel=2e-3)
    assert rows[3:] == pytest.approx([max(early[-1], steady)] * 9, rel=2e-3)
    late = parts(*STREAM, "rounds=12", "streams.memory_size=15", "privacy.noise_multiplier=1.5").server.protection
    assert isinstance(late, StreamedExample)
    for round in range(6, 13):  # whoever begins when the memory is full pays for the steady state alone
        late.charge(round, np.arange(8))
    assert late.client_epsilons(8) == pytest.approx([steady] * 8, rel=2e-3)


def test_late_labels_are_counted_from_when_they_come() -> None:
    once = (*STREAM, "rounds=6", "streams.memory=once", "privacy.noise_multiplier=1.2")
    made = parts(*once, "streams.label_delay=2")
    play(made)
    rows = made.server.state.rows
    assert [row["cohort_size"] for row in rows] == [0, 0, 8, 8, 8, 8]
    assert [row["epsilon"] for row in rows] == pytest.approx([0.0, 0.0, *[composed(1.2, (1, 1))] * 4], rel=1e-3)


@pytest.mark.parametrize(
    "memory",
    [
        ("streams.memory=once",),
        ("streams.memory_size=12",),
        ("streams.memory=reservoir", "streams.memory_size=12", "privacy.max_participations=3"),
        ("streams.memory=all", "streams.label_delay=1"),
    ],
    ids=lambda keys: keys[0].partition("=")[2],
)
def test_the_noise_is_enough_for_every_example_and_no_more(memory: tuple[str, ...]) -> None:
    made = parts(*STREAM, "streams=poisson", "population.num_clients=3", "rounds=8", "privacy.epsilon=3", *memory)
    protection, population = protection_of(made), made.population
    assert protection.plan()["epsilon"] <= 3
    play(made)
    worst = []
    for client in range(3):
        z = protection.noise_multiplier_of(client)
        trained = np.flatnonzero(protection.times[client]).tolist()
        assert len(trained) <= 3 or "privacy.max_participations=3" not in memory
        every = own_steps(population.stream, made.settings, client, trained)  # type: ignore[attr-defined]
        each = {tuple(sorted(steps.items(), reverse=True)) for steps in every.values()}
        worst.append(max(composed(z, *steps) for steps in each))
    spent = protection.client_epsilons(3)
    assert (spent <= 3).all() and (np.array(worst) <= spent * (1 + 1e-3)).all()
    assert max(worst) > 3 * 0.99 or "privacy.max_participations=3" in memory
    assert protection.ledger()["epsilon"] == pytest.approx(spent.max())
    assert [row["clients_spent"] for row in made.server.state.rows][:2] == [0, 0]


def test_a_client_whose_budget_is_spent_leaves_and_is_back_with_a_new_memory() -> None:
    keys = ("rounds=12", "streams.memory_size=15", "privacy.noise_multiplier=1.5", "privacy.budget=3")
    made = parts(*STREAM, *keys)
    protection = protection_of(made)
    assert protection.plan()["epsilon"] == 3 and any("leaves" in said for said in protection.plan()["warnings"])
    play(made)
    rows = made.server.state.rows
    one, two = composed(1.5, (1, 1)), composed(1.5, (1, 1), (1 / 2, 2))
    assert one < 3 < composed(1.5, (1, 1), (1 / 2, 2), (1 / 3, 3)), "by hand: the third round would be too much"
    played = 2 if two <= 3 else 1
    assert [row["cohort_size"] for row in rows[: played + 1]] == [8] * played + [0]
    assert [row["clients_spent"] for row in rows[: played + 1]] == [0] * played + [8], (
        "they hold examples, and have left"
    )
    assert sum(row["cohort_size"] for row in rows[played + 1 :]) > 0, "the first examples are gone from memory"
    for client in range(8):
        trained = np.flatnonzero(protection.times[client]).tolist()
        for steps in own_steps(made.population.stream, made.settings, client, trained).values():  # type: ignore[attr-defined]
            assert composed(1.5, *sorted(steps.items(), reverse=True)) <= 3 * (1 + 1e-3)


def test_a_run_ends_when_all_have_left_for_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ("rounds=12", "streams.rate=20", "streams.memory=all", "client.epochs=8", "evaluation.every=4")
    summary = run_into(tmp_path, tiny(*STREAM, *keys, "privacy.noise_multiplier=1.5", "privacy.budget=3"))
    ledger = json.loads((tmp_path / "privacy.json").read_text())
    rounds = pd.read_parquet(tmp_path / "rounds.parquet")
    assert 0 < summary["rounds"] < 12 and "where its privacy budget" in capsys.readouterr().out
    assert ledger["clients_spent"] == 8 > rounds["clients_spent"].iloc[-1], "of the next round, which there is not"
    assert rounds["epsilon"].iloc[-1] == ledger["epsilon"] <= 3
    assert ("Clients whose budget is spent", "8") in rows_of(ledger, ledger["epsilon"], doubtful=False)


def test_a_budget_that_pays_for_nothing_is_refused() -> None:
    with pytest.raises(FedsimError, match=r"privacy\.budget=0\.01 does not pay for one round"):
        parts(*STREAM, "privacy.noise_multiplier=1", "privacy.budget=0.01")
    with pytest.raises(FedsimError, match="no example with a label comes"):
        parts(*STREAM, "privacy.noise_multiplier=1", "streams.label_delay=50")
    with pytest.raises(FedsimError, match=r"privacy\.delta=0\.2 is not below 1/10"):
        parts(*STREAM, "rounds=2", "privacy.noise_multiplier=1", "privacy.delta=0.2")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("streams.repeat=true",), "as coming once"),
        (("fleet=phones", "schedule=fedbuff", "sampler=fixed"), "an earlier round's memory"),
        (("audit=canary",), "use audit=none"),
        (("strategy=rls", "streams.memory=once"), "numbers beside their update"),
        (("strategy=ewc",), "privacy=example does not cover"),
    ],
)
def test_what_cannot_be_promised_is_refused(overrides: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(FedsimError, match=sentence):
        parts(*STREAM, "privacy.noise_multiplier=1", *overrides)


GROUPS = "privacy.budgets={careful: {share: 0.5, epsilon: 1}, open: {share: 0.5, epsilon: 6}}"


def test_groups_are_each_kept_to_their_promise() -> None:
    made = parts(*STREAM, "rounds=8", "streams.memory_size=12", GROUPS)
    protection = protection_of(made)
    play(made)
    spent = np.sort(protection.client_epsilons(8))
    assert spent[3] <= 1 < 5.9 < spent[4] <= 6
    left = parts(*STREAM, "rounds=8", "streams.memory=all", "privacy.noise_multiplier=1.5", GROUPS)
    play(left)
    spent = np.sort(protection_of(left).client_epsilons(8))
    assert spent[3] <= 1 < spent[4] <= 6
    assert left.server.state.rows[-1]["cohort_size"] < 8


def test_a_group_to_which_nothing_comes_is_no_obstacle() -> None:
    made = parts(*STREAM, "streams=poisson", "streams.rate=0.1", "rounds=2", "privacy.delta=0.5", GROUPS)
    play(made)
    assert (made.population.stream.counts(2) == 0).any()  # type: ignore[attr-defined]
    assert protection_of(made).z.all() and protection_of(made).client_epsilons(8).max() <= 6


# Resume and grids

STOPPED = (*STREAM, "streams=poisson", "streams.memory_size=12", "privacy.noise_multiplier=1.5", "privacy.budget=3")


def test_a_stopped_private_stream_goes_on_with_the_same_bits_and_books(tmp_path: Path) -> None:
    run_into(tmp_path / "whole", tiny(*STOPPED, "rounds=9"))
    run_into(tmp_path / "half", tiny(*STOPPED, "rounds=4"))
    resume(tmp_path / "half", rounds=9)
    run_into(tmp_path / "wide", tiny(*STOPPED, "rounds=9", "grid=processes", "grid.workers=2"))
    assert model_of(tmp_path / "half") == model_of(tmp_path / "whole") == model_of(tmp_path / "wide")
    books = [json.loads((tmp_path / name / "privacy.json").read_text()) for name in ("whole", "half", "wide")]
    assert books[0] == books[1] == books[2]
    columns = ["epsilon", "clients_spent", "cohort_size"]
    tables = [pd.read_parquet(tmp_path / name / "rounds.parquet")[columns] for name in ("whole", "half")]
    assert tables[0].equals(tables[1])


def test_more_rounds_after_a_resume_are_paid_by_new_examples_alone(tmp_path: Path) -> None:
    once = (*STREAM, "streams.memory=once", "privacy.epsilon=2")
    run_into(tmp_path / "once", tiny(*once, "rounds=3"))
    summary = resume(tmp_path / "once", rounds=6)
    assert summary["rounds"] == 6 and summary["epsilon"] <= 2
    every = pd.read_parquet(tmp_path / "once" / "rounds.parquet")
    assert every["cohort_size"].tolist() == [8] * 6
    kept = (*STREAM, "streams.memory=all", "privacy.epsilon=2", "client.epochs=4")
    run_into(tmp_path / "kept", tiny(*kept, "rounds=3"))
    summary = resume(tmp_path / "kept", rounds=6)
    assert summary["rounds"] == 3 and summary["epsilon"] <= 2


def test_a_round_that_is_played_again_with_other_noise_counts_again(tmp_path: Path) -> None:
    made = [parts(*STREAM, "rounds=4", "privacy.noise_multiplier=1.5", "privacy.secure_rng=true") for _ in range(2)]
    before, after = (protection_of(one) for one in made)
    journal = tmp_path / "journal.jsonl"
    before.keep_journal(journal, None)
    before.charge(1, np.arange(8))
    kept = before.state()
    before.charge(2, np.array([0, 3]))
    after.load_state(kept)
    after.keep_journal(journal, 1)
    after.charge(2, np.array([0, 3]))
    assert after.times[0].tolist() == [0, 1, 2, 0, 0] and after.times[1].tolist() == [0, 1, 0, 0, 0]
    twice = composed(1.5, (1, 1), (1 / 2, 4))
    assert after.client_epsilons(8)[[0, 3]] == pytest.approx([twice] * 2, rel=2e-3)


# An adversary


def given(data: ClientData, client: int) -> ClientData:
    return data


def test_an_adversary_learns_as_much_of_an_example_as_is_claimed() -> None:
    """One client whose window holds each example for two rounds, all of it in each step: a shift of sqrt(2) / z, by hand.

    Neighbours: the same stream with an example that gives no gradient in the place of one. The adversary knows all else and the
    example's own gradient, and adds up what it sees along it, in four rounds of which two hold the example.
    """
    z, runs = 2.0, 1200
    keys = ("client.batch_size=null", "streams.memory_size=10", "privacy.noise_multiplier=2", "client.lr=1")
    made = parts(*STREAM, "population.num_clients=1", "rounds=4", *keys)
    population, protection = made.population, protection_of(made)
    assert isinstance(population, StreamedPopulation)
    arrays = {name: torch.zeros_like(array) for name, array in made.server.state.arrays.items()}
    (name,) = (name for name, array in arrays.items() if array.dim() == 2)
    chosen = population.stream.arriving(0, 2)[0]
    direction = torch.tensor([2.0, -1.0, -1.0]) / np.sqrt(6)  # against the gradient of a first of three equal chances
    scores: dict[bool, list[float]] = {True: [], False: []}
    for run, present in itertools.product(range(runs), (True, False)):
        protection.source = NoiseSource(2 * run + present)  # releases are independent
        total = 0.0
        for round in range(1, 5):
            held = population.stream.held(0, round)
            x = torch.zeros(len(held), arrays[name].shape[1])  # of all others nothing is seen in the weights
            x[held == chosen, 0] = 1e4 * present
            data = ClientData(0, x, torch.zeros(len(held), dtype=torch.int64))
            (update,) = made.trainer.train(arrays, [0], partial(given, data), lambda _: {}, round)
            assert isinstance(update, ClientUpdate)
            total += float(update.arrays[name][:, 0] @ direction) * len(held) * bool((held == chosen).any())
        scores[present].append(total)
    mu = np.sqrt(2) / z
    seen = gaussian_mu_lower_bound(np.array(scores[True]), np.array(scores[False]), confidence=0.95)
    assert 0.8 * mu < seen < 1.05 * mu
    claimed = protection.exposure.mechanism(np.array([2]), z)
    by_hand = accounting.GaussianReleases(z / np.sqrt(2), "none", adjacency="zero-out")
    one = accounting.spend(by_hand, 1, DELTA).epsilon
    assert accounting.spend(claimed, 1, DELTA).epsilon == pytest.approx(one, rel=1e-6)


# One promise to each client, over its whole stream

USER = ("streams=poisson", "streams.rate=0.4", "population.holdout=0", "privacy=user", "privacy.delta=0.01")


def test_user_level_promises_are_those_of_the_same_run_without_a_stream() -> None:
    keys = ("privacy=user", "privacy.delta=0.01", "privacy.noise_multiplier=1.1", "sampler=poisson", "rounds=6")
    made, plain = parts(*USER, *keys, "sampler.fraction=0.5"), parts(*keys, "sampler.fraction=0.5")
    play(made)
    play(plain)
    ours, theirs = made.server.protection.ledger(), plain.server.protection.ledger()
    assert ours["epsilon"] == theirs["epsilon"] and ours["rounds"] == 6
    assert [row["cohort_size"] for row in made.server.state.rows] == [
        row["cohort_size"] for row in plain.server.state.rows
    ]
    assert STREAM_OUTSIDE in ours["caveats"] and STREAM_OUTSIDE not in theirs["caveats"]
    with_dp = PLDAccountant().compose(
        dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.GaussianDpEvent(1.1)), count=6
    )
    assert ours["epsilon"] == pytest.approx(with_dp.get_epsilon(0.01), rel=1e-3)


def test_who_is_drawn_in_secret_does_not_rest_on_who_has_data() -> None:
    keys = ("privacy.noise_multiplier=1", "sampler=fixed", "sampler.cohort_size=3", "rounds=5")
    early, late = parts(*USER, *keys), parts(*USER, *keys, "streams.start=4")
    drawn: list[list[list[int]]] = [[], []]
    for cohorts, made in zip(drawn, (early, late), strict=True):
        charge = made.server.protection.charge

        def noted(round: int, cohort: np.ndarray, charge: Any = charge, cohorts: Any = cohorts) -> None:
            cohorts.append(cohort.tolist())
            charge(round, cohort)

        made.server.protection.charge = noted  # type: ignore[method-assign]
        play(made)
        assert not made.server.state.failures, "to have nothing yet is no failure"
    assert drawn[0] == drawn[1]
    assert all(row["aggregated"] for row in late.server.state.rows), "noise alone is released"


def test_a_tree_on_a_stream_has_the_sensitivity_of_repeated_participation() -> None:
    """Four rounds, a client in two of them at least two apart: nodes over rounds 1, 1-2, 3 and 1-4, counted by hand."""
    nodes = [{1}, {1, 2}, {3}, {1, 2, 3, 4}]
    patterns = [p for p in itertools.combinations(range(1, 5), 2) if p[1] - p[0] >= 2]
    by_hand = max(sum(len(node & set(p)) ** 2 for node in nodes) for p in patterns)
    assert by_hand == 7  # of rounds 1 and 3: 1 + 1 + 1 + 2^2
    keys = ("privacy.mechanism=tree", "privacy.noise_multiplier=4", "privacy.max_participations=2")
    limits = ("privacy.min_separation=2", "sampler=fixed", "sampler.cohort_size=4", "rounds=4")
    made = parts(*USER, *keys, *limits)
    play(made)
    ledger = made.server.protection.ledger()
    assert ledger["matrix"]["sensitivity"] == pytest.approx(np.sqrt(7))
    one = PLDAccountant().compose(dp_accounting.GaussianDpEvent(4 / np.sqrt(7))).get_epsilon(0.01)
    assert ledger["epsilon"] == pytest.approx(one, rel=1e-3)
    assert ledger["participations"] == {"most": 2, "limit": 2}
    assert made.server.protection.eligible(5).tolist() == []  # type: ignore[union-attr]


def test_the_online_experiment_is_private_by_example_as_well(tmp_path: Path) -> None:
    """Its plan at full length: what the issue asks for is what it costs."""
    from helpers import config, write_fashion_mnist

    from fedsim.experiment import run

    write_fashion_mnist(tmp_path, train=40_000, test=20)
    small = (f"dataset.root={tmp_path}", "dataset.verify=false", "device=cpu", "grid=inprocess")
    asked = ("+experiment=online_drift", "privacy=example", "privacy.epsilon=4", *small)
    run(config(*asked, "dry_run=true"), tmp_path / "plan")
    plan = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert 3.9 < plan["epsilon"] <= 4 and plan["unit"] == "example" and plan["adjacency"] == "zero-out"
