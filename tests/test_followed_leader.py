"""Correlated noise in a run: what the model carries of it, who may take part, what is spent, and what a kill costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from helpers import parts, play, resume, run_into, same_bits, tiny
from scipy import stats
from test_user_privacy import STILL, WIDE

from fedsim.parts import Parts
from fedsim.privacy.followed_leader import FollowedLeader
from fedsim.server import Server
from fedsim.session import Stopped
from fedsim.types import FedsimError, Params

pytestmark = pytest.mark.usefixtures("no_pictures")

LEVEL = 1e-6
USER = ("privacy=user", "privacy.delta=1e-3", "privacy.clip_norm=0.5")
TREE = (*USER, "privacy.mechanism=tree", "privacy.noise_multiplier=4")
BANDED = (*USER, "privacy.mechanism=banded", "privacy.noise_multiplier=4")
FEW = ("sampler=fixed", "sampler.cohort_size=2")
SECURE = "privacy.secure_rng=true"


# Oracles and helpers


def tree_matrix(rounds: int, restart: int) -> np.ndarray:
    """C by its definition: the round that is t-th of its tree ends the node of the last lowbit(t) rounds."""
    dense = np.zeros((rounds, rounds))
    for row in range(rounds):
        place = row % restart + 1
        low = next(2**k for k in range(rounds + 1) if place % 2 ** (k + 1))
        dense[row, row + 1 - low : row + 1] = 1
    return dense


def banded_matrix(rounds: int, bands: int) -> np.ndarray:
    """C by its definition: coefficients of (1 - x)^(-1/2) below the diagonal, columns of norm 1."""
    coefficients = [1.0, 1 / 2, 3 / 8, 5 / 16][:bands]
    dense = sum(c * np.eye(rounds, k=-k) for k, c in enumerate(coefficients))
    return np.asarray(dense / np.linalg.norm(dense, axis=0))


def one_gaussian(shift: float, times: int = 1) -> float:
    """Epsilon at 1e-3 of so many Gaussian releases that a client moves by `shift` standard deviations."""
    accountant = PLDAccountant()
    accountant.compose(SelfComposedDpEvent(GaussianDpEvent(1 / shift), times))
    return float(accountant.get_epsilon(1e-3))


def snapshots(made: Parts) -> np.ndarray:
    """(rounds + 1, coordinates) the model before and after each round, in float64."""

    def flat(arrays: Params) -> np.ndarray:
        return torch.cat([array.double().reshape(-1) for array in arrays.values()]).numpy()

    seen = [flat(made.server.state.arrays)]
    made.server.on_round = lambda row: seen.append(flat(made.server.state.arrays))
    play(made)
    return np.array(seen)


def protection_of(made: Parts) -> FollowedLeader:
    protection = made.server.protection
    assert isinstance(protection, FollowedLeader)
    return protection


def ledger(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "privacy.json").read_text())


def cohorts_of(journal: Path) -> list[tuple[int, list[int]]]:
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    return [(line["round"], line["clients"]) for line in lines]


class Killed(BaseException):
    """The machine went down."""


@pytest.fixture
def killed_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Kills every run in this round, after its release and before its end; None: no more."""
    original = Server._commit

    def kill(round: int | None) -> None:
        def commit(self: Server, grid: Any, number: int, *rest: Any) -> None:
            if number == round:
                raise Killed
            original(self, grid, number, *rest)

        monkeypatch.setattr(Server, "_commit", commit)

    return kill


# The noise of the model


CASES = {
    "tree": ((*TREE, "rounds=7"), tree_matrix(7, 7)),
    "tree with restart": ((*TREE, "rounds=7", "privacy.restart=3"), tree_matrix(7, 3)),
    "banded": ((*BANDED, "rounds=6", "privacy.bands=3"), banded_matrix(6, 3)),
}


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(("overrides", "dense"), CASES.values(), ids=CASES)
def test_the_model_carries_the_noise_of_the_dense_matrix(
    overrides: tuple[str, ...], dense: np.ndarray, secure: bool
) -> None:
    moves = np.diff(snapshots(parts(*overrides, *WIDE, *([SECURE] if secure else []))), axis=0)
    scale = 4 * 0.5 / 8  # noise multiplier, clipping norm, clients

    def is_as(expected: np.ndarray) -> bool:
        coordinates = moves.shape[1]
        deviation = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / coordinates)
        scores = abs(moves @ moves.T / coordinates - expected) / deviation
        return bool(scores.max() < stats.norm.isf(LEVEL / 2 / scores.size))

    assert moves.shape[1] > 10_000
    assert is_as(scale**2 * np.linalg.inv(dense.T @ dense))
    assert not is_as(scale**2 * np.diag(np.diag(np.linalg.inv(dense.T @ dense))))  # uncorrelated
    assert not is_as((0.9 * scale) ** 2 * np.linalg.inv(dense.T @ dense))


def test_the_model_of_the_last_round_has_less_noise_than_fresh_noise_would_give() -> None:
    """Eight rounds of a tree end in one node: one draw, where independent noise would have added up to eight."""
    states = snapshots(parts(*TREE, "rounds=8", *WIDE))
    ratio = float(np.square(states[-1] - states[0]).mean()) / (4 * 0.5 / 8) ** 2
    assert ratio == pytest.approx(1, abs=0.1)


def test_the_noise_is_added_to_the_clipped_mean() -> None:
    still = parts(*TREE, *STILL, "rounds=3", "client.lr=50")
    moving = parts(*TREE, "rounds=3", "client.lr=50")
    gaps = np.diff(snapshots(moving) - snapshots(still), axis=0)
    norms = np.linalg.norm(gaps, axis=1)
    assert (norms > 1e-3).all() and (norms <= 0.5 * (1 + 1e-5)).all()  # a mean of eight updates of norm 0.5


def test_the_noise_comes_from_the_seed_or_from_nowhere() -> None:
    first, again, other = (play(parts(*TREE, *STILL, f"seed={seed}")) for seed in (0, 0, 1))
    assert same_bits(first, again) and not same_bits(first, other)
    first, again = (play(parts(*TREE, *STILL, SECURE)) for _ in range(2))
    assert not same_bits(first, again)


def test_server_momentum_works_on_the_noisy_mean() -> None:
    """FedAvgM is linear in the means that it is given: its steps by hand from FedAvg's."""
    overrides = (*TREE, "rounds=5", *STILL)
    means = np.diff(snapshots(parts(*overrides)), axis=0)
    made = parts(*TREE, "rounds=5", "client.lr=1e-20", "strategy=fedavgm", "strategy.server_momentum=0.5")
    velocity, expected = np.zeros_like(means[0]), []
    for mean in means:
        velocity = 0.5 * velocity + mean
        expected.append(velocity)
    np.testing.assert_allclose(np.diff(snapshots(made), axis=0), expected, atol=1e-5)


# Limits


LIMITS = (*FEW, "rounds=8", "privacy.max_participations=3", "privacy.min_separation=3")
BOTH = (*FEW, "rounds=10", "privacy.max_participations=3", "privacy.min_separation=2")
"""Rounds enough for each of the limits to matter."""


@pytest.mark.parametrize("mechanism", [TREE, BANDED], ids=["tree", "banded"])
@pytest.mark.parametrize("secure", [False, True])
def test_no_cohort_breaks_the_limits(mechanism: tuple[str, ...], secure: bool, tmp_path: Path) -> None:
    run_into(tmp_path, tiny(*mechanism, *BOTH, *([SECURE] if secure else [])))
    drawn = cohorts_of(tmp_path / "privacy_journal.jsonl")
    assert [round for round, _ in drawn] == list(range(1, 11))
    assert keep_the_limits(drawn, most=3, apart=2)
    book = ledger(tmp_path)
    assert book["limits"] == {"participations": 3, "separation": 2} and book["participations"]["most"] <= 3


def keep_the_limits(drawn: list[tuple[int, list[int]]], most: int, apart: int) -> bool:
    rounds = [[round for round, cohort in drawn if client in cohort] for client in range(8)]
    return all(len(own) <= most and (np.diff(own) >= apart).all() for own in rounds)


def test_the_same_sampler_would_break_either_limit_alone() -> None:
    sampler = parts(*TREE, *BOTH).server.sampler

    def drawn(most: int, apart: int) -> list[tuple[int, list[int]]]:
        rounds: list[tuple[int, list[int]]] = []
        for round in range(1, 11):
            taken = [c for _, cohort in rounds for c in cohort]
            resting = [c for at, cohort in rounds for c in cohort if round - at < apart]
            able = [c for c in range(8) if taken.count(c) < most and c not in resting]
            rounds.append((round, sampler.cohort(0, round, 8, np.array(able)).tolist()))
        return rounds

    assert keep_the_limits(drawn(3, 2), most=3, apart=2)
    assert not keep_the_limits(drawn(3, 1), most=3, apart=2) and not keep_the_limits(drawn(9, 2), most=3, apart=2)


def test_a_run_ends_when_no_one_may_take_part_any_more() -> None:
    protection = protection_of(parts(*TREE, "rounds=2", "privacy.max_participations=2"))
    everyone = np.arange(8)
    assert protection.rounds_left(9) == 2  # the noise was laid out for no more
    protection.charge(1, everyone)
    assert protection.rounds_left(1) == 1
    protection.charge(2, everyone)
    assert protection.rounds_left(1) == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ("rounds=8", "privacy.max_participations=1"),
        ("rounds=8", "privacy.min_separation=5"),
        ("rounds=9", "privacy.max_participations=2"),
    ],
)
def test_a_population_that_cannot_fill_the_rounds_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(FedsimError, match=r"8 clients that take part at most .* do not fill [89] rounds of 2"):
        parts(*TREE, *FEW, *overrides)


# What is spent


def test_the_promise_is_of_the_whole_run(tmp_path: Path) -> None:
    """Rounds 1 and 5 of a tree of eight: apart, each is in nodes of 4, 2, 1 rounds, and both are in the root."""
    overrides = (*FEW, "rounds=8", "privacy.max_participations=2", "privacy.min_separation=4")
    plan = protection_of(parts(*TREE, *overrides)).plan()
    run_into(tmp_path, tiny(*TREE, *overrides))
    dense, pairs = tree_matrix(8, 8), [(a, b) for a in range(8) for b in range(a + 4, 8)]
    sensitivity = max(float(np.linalg.norm(dense[:, pair].sum(axis=1))) for pair in pairs)
    book = ledger(tmp_path)
    assert book["matrix"] == {"kind": "tree", "restart": 8, "rounds": 8, "sensitivity": pytest.approx(sensitivity)}
    assert book["sensitivity"] == pytest.approx(0.5 * sensitivity) and book["clip_norm"] == 0.5
    assert book["epsilon"] == plan["epsilon"] == pytest.approx(one_gaussian(sensitivity / 4), rel=1e-3)
    assert book["rounds"] == 8 and book["runs_shown"] == 1
    rows = pq.read_table(tmp_path / "rounds.parquet").to_pydict()
    assert np.allclose(rows["epsilon"], book["epsilon"], rtol=1e-6)  # all of it is spent with the first round


def test_the_ledger_names_the_bands(tmp_path: Path) -> None:
    run_into(tmp_path, tiny(*BANDED, *FEW, "rounds=8", "privacy.bands=3", "privacy.max_participations=2"))
    book = ledger(tmp_path)
    root = pytest.approx(2**0.5)  # no two participations of a client share a row
    assert book["matrix"] == {"kind": "banded", "strategy_matrix": "sqrt", "bands": 3, "rounds": 8, "sensitivity": root}
    assert book["sensitivity"] == pytest.approx(0.5 * 2**0.5) and book["limits"]["separation"] == 4


def test_clients_that_took_part_less_spent_less(tmp_path: Path) -> None:
    run_into(tmp_path, tiny(*TREE, *FEW, "rounds=5", "privacy.min_separation=2", "privacy.max_participations=3"))
    clients = pq.read_table(tmp_path / "clients.parquet").to_pydict()
    dense = tree_matrix(5, 5)
    worst = {0: 0.0, 1: np.linalg.norm(dense, axis=0).max()}
    worst[2] = max(np.linalg.norm(dense[:, [a, b]].sum(1)) for a in range(5) for b in range(a + 2, 5))
    worst[3] = np.linalg.norm(dense[:, [0, 2, 4]].sum(1))
    assert len(set(clients["participations"])) > 2
    for count, epsilon in zip(clients["participations"], clients["epsilon"], strict=True):
        assert epsilon == pytest.approx(one_gaussian(worst[count] / 4) if count else 0.0, rel=1e-3)


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
@pytest.mark.parametrize("mechanism", ["tree", "banded"])
def test_noise_that_is_solved_for_pays_for_all_rounds(mechanism: str, epsilon: float) -> None:
    made = parts(*USER, f"privacy.mechanism={mechanism}", f"privacy.epsilon={epsilon}", *FEW, "rounds=4")
    play(made)
    assert made.server.state.round == 4 and protection_of(made).rounds_left(9) == 0
    assert 0.99 * epsilon <= protection_of(made).ledger()["epsilon"] <= epsilon


@pytest.mark.parametrize("mechanism", ["tree", "banded"])
def test_a_budget_that_the_run_exceeds_is_refused(mechanism: str) -> None:
    overrides = (*USER, f"privacy.mechanism={mechanism}", "privacy.noise_multiplier=1", "rounds=4")
    promised = parts(*overrides).server.protection.plan()["epsilon"]
    with pytest.raises(FedsimError, match=r"privacy.budget=.* does not pay for one round"):
        parts(*overrides, f"privacy.budget={0.99 * promised}")
    made = parts(*overrides, f"privacy.budget={1.01 * promised}")
    assert made.server.protection.rounds_left(4) == 4
    play(made)
    assert made.server.state.round == 4


# Resume


@pytest.mark.parametrize("mechanism", [TREE, (*BANDED, "privacy.bands=3")], ids=["tree", "banded"])
def test_a_run_that_was_killed_goes_on_with_the_same_bits_and_spends_once(
    mechanism: tuple[str, ...], tmp_path: Path, killed_in: Callable[[int | None], None]
) -> None:
    overrides = (*mechanism, *BOTH, "checkpoint.every=3")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    undisturbed = run_into(whole, tiny(*overrides))
    killed_in(6)
    with pytest.raises(Killed):
        run_into(folder, tiny(*overrides))
    with pytest.raises(Killed):
        resume(folder)
    killed_in(None)
    summary = resume(folder)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [round for round, _ in cohorts_of(folder / "privacy_journal.jsonl")] == [
        *range(1, 7),
        4,
        5,
        6,
        *range(4, 11),
    ]
    assert summary["epsilon"] == undisturbed["epsilon"] and ledger(folder)["runs_shown"] == 1
    clients = [pq.read_table(each / "clients.parquet") for each in (whole, folder)]
    assert clients[0].equals(clients[1])


@pytest.mark.parametrize("kills", [1, 3])
def test_each_kill_that_lost_rounds_of_secret_noise_costs_a_whole_run(
    kills: int, tmp_path: Path, killed_in: Callable[[int | None], None]
) -> None:
    overrides = (*TREE, *LIMITS, SECURE, "checkpoint.every=3")
    killed_in(6)
    with pytest.raises(Killed):
        run_into(tmp_path, tiny(*overrides))
    for _ in range(kills - 1):
        with pytest.raises(Killed):
            resume(tmp_path)
    killed_in(None)
    resume(tmp_path)
    drawn, book = cohorts_of(tmp_path / "privacy_journal.jsonl"), ledger(tmp_path)
    assert [round for round, _ in drawn].count(4) == kills + 1
    assert book["runs_shown"] == kills + 1
    assert book["epsilon"] == pytest.approx(one_gaussian(book["matrix"]["sensitivity"] / 4, kills + 1), rel=1e-3)
    kept = drawn[:3] + drawn[-5:]  # the way to the model that there is keeps the limits, and fills its cohorts
    assert [round for round, _ in kept] == list(range(1, 9)) and {len(cohort) for _, cohort in kept} == {2}
    assert keep_the_limits(kept, most=3, apart=3)


def test_kills_after_different_checkpoints_add_up(tmp_path: Path, killed_in: Callable[[int | None], None]) -> None:
    killed_in(4)
    with pytest.raises(Killed):
        run_into(tmp_path, tiny(*TREE, *LIMITS, SECURE, "checkpoint.every=2"))
    killed_in(8)
    with pytest.raises(Killed):
        resume(tmp_path)
    killed_in(None)
    resume(tmp_path)
    assert [round for round, _ in cohorts_of(tmp_path / "privacy_journal.jsonl")] == [*range(1, 5), *range(3, 9), 7, 8]
    assert ledger(tmp_path)["runs_shown"] == 3


def test_rounds_before_the_first_checkpoint_are_a_run_of_their_own(tmp_path: Path) -> None:
    for runs in (1, 2, 3):
        protection = protection_of(parts(*TREE, "rounds=5", SECURE))
        protection.keep_journal(tmp_path / "journal", None)
        assert protection.shown == runs - 1
        for round in (1, 2):
            protection.charge(round, np.arange(8))
        assert protection.spent_count == runs


def test_runs_that_a_checkpoint_knows_of_are_not_forgotten_with_the_journal(tmp_path: Path) -> None:
    first, second = (protection_of(parts(*TREE, "rounds=5", SECURE)) for _ in range(2))
    first.shown = 3
    second.load_state(first.state())
    second.keep_journal(tmp_path / "none", None)
    assert second.spent_count == 3


def test_a_checkpoint_that_lost_nothing_begins_nothing(tmp_path: Path) -> None:
    first, second = (protection_of(parts(*TREE, "rounds=5", SECURE)) for _ in range(2))
    first.keep_journal(tmp_path / "journal", None)
    first.charge(1, np.arange(8))
    second.load_state(first.state())
    second.keep_journal(tmp_path / "journal", 1)
    second.charge(2, np.arange(8))
    assert second.spent_count == 1


@pytest.mark.parametrize("key", ["budget", "epsilon"])
def test_a_replay_that_the_budget_does_not_bear_is_not_played(
    key: str, tmp_path: Path, killed_in: Callable[[int | None], None]
) -> None:
    """What pays for two whole runs and not for three: one kill may be mended, the second ends the run."""
    shift = protection_of(parts(*TREE, *LIMITS)).mechanism.sensitivity / 4
    once, twice, thrice = (one_gaussian(shift, times) for times in (1, 2, 3))
    if key == "budget":
        overrides = (*TREE, *LIMITS, SECURE, "checkpoint.every=3", f"privacy.budget={(twice + thrice) / 2}")
    else:
        overrides = (*USER, "privacy.mechanism=tree", *LIMITS, SECURE, "checkpoint.every=3", f"privacy.epsilon={once}")
    killed_in(6)
    for kill in range(2 if key == "budget" else 1):
        with pytest.raises(Killed):
            resume(tmp_path) if kill else run_into(tmp_path, tiny(*overrides))
    killed_in(None)
    played = cohorts_of(tmp_path / "privacy_journal.jsonl")
    summary = resume(tmp_path)
    assert cohorts_of(tmp_path / "privacy_journal.jsonl") == played and summary["rounds"] == 3
    book = ledger(tmp_path)
    assert book["runs_shown"] == (2 if key == "budget" else 1) and book["epsilon"] <= book["budget"]


def test_a_run_of_secret_noise_that_was_stopped_goes_on_with_noise_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rounds of a tree end in one draw only if the later rounds take back what the earlier ones added."""
    overrides = (*TREE, *WIDE, SECURE, "rounds=8", "checkpoint.every=100")
    before = parts(*overrides).server.state.arrays
    original = Server.play_round

    def stop(self: Server, grid: Any, nodes: Any, number: int, last: int) -> Any:
        if number == 6:
            raise KeyboardInterrupt
        return original(self, grid, nodes, number, last)

    with monkeypatch.context() as patch:
        patch.setattr(Server, "play_round", stop)
        with pytest.raises(Stopped, match="after round 5 of 8"):
            run_into(tmp_path, tiny(*overrides))
    resume(tmp_path)
    from safetensors.torch import load_file

    after = load_file(tmp_path / "model.safetensors")
    moved = torch.cat([(after[name] - before[name]).double().reshape(-1) for name in before])
    assert float(moved.square().mean()) / (4 * 0.5 / 8) ** 2 == pytest.approx(1, abs=0.1)
    assert ledger(tmp_path)["runs_shown"] == 1  # nothing was lost


def test_more_rounds_than_the_noise_was_laid_out_for_are_refused(tmp_path: Path) -> None:
    run_into(tmp_path, tiny(*TREE, "rounds=3"))
    with pytest.raises(FedsimError, match="laid out for 3 rounds"):
        resume(tmp_path, rounds=6)
