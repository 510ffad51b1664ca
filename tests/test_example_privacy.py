"""privacy=example: every client its own noise and its own books, held against dp-accounting itself."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from helpers import parts, resume, run_into, same_bits, tiny
from helpers import play as play_run
from scipy.stats import kstest

from fedsim.privacy.base import Protection, Setting
from fedsim.privacy.budgets import draw_groups, read_groups
from fedsim.privacy.example import ExamplePrivacy, ExampleProtection
from fedsim.privacy.example_accounts import MAX_ACCOUNTS, classes
from fedsim.privacy.noise import SECURE
from fedsim.training import LocalTraining
from fedsim.types import FedsimError

DELTA = 1e-5


def setting(sizes: list[int], rounds: int = 6, sampling: str = "fixed", **more: Any) -> Setting:
    """So many clients of these sizes; by default batches of 10 in one epoch."""
    training = more.pop("training", LocalTraining(batch_size=10))
    keys: dict[str, Any] = {
        "seed": 3,
        "rounds": rounds,
        "num_clients": len(sizes),
        "sampling": sampling,
        "cohort_size": 2,
        "num_examples": np.array(sizes),
        "training": training,
        "strategy": "fedavg",
        "linear": True,
        "one_vector": True,
        "shapes": {"w": torch.Size([3])},
    }
    return Setting(**{**keys, **more})


@cache
def epsilon_of(z: float, rate: float, steps: int) -> float:
    """By dp-accounting's own accountant."""
    gaussian = dp_accounting.GaussianDpEvent(z)
    once = dp_accounting.PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian
    return PLDAccountant().compose(once, steps).get_epsilon(DELTA)


def play(protection: ExampleProtection, rounds: list[list[int]], first: int = 1) -> None:
    for round, cohort in enumerate(rounds, first):
        protection.charge(round, np.array(cohort, dtype=np.int64))


def test_each_client_gets_the_noise_that_its_own_rate_and_steps_need() -> None:
    sizes = [7, 10, 25, 200]
    protection = ExamplePrivacy(epsilon=2.0).protect(setting(sizes, rounds=5))
    for client, (rate, steps) in enumerate([(1.0, 1), (1.0, 1), (0.4, 3), (0.05, 20)]):
        z = protection.noise_multiplier_of(client)
        assert epsilon_of(z, rate, 5 * steps) == pytest.approx(2.0, rel=2e-3)
        assert epsilon_of(z, rate, 5 * steps) <= 2.0
    assert protection.noise_multiplier_of(0) == protection.noise_multiplier_of(1)
    plan = protection.plan()
    assert plan["epsilon"] == pytest.approx(2.0, rel=2e-3) and plan["epsilon"] <= 2.0
    assert plan["noise_multipliers"] == [protection.z.min(), protection.z.max()]
    assert (plan["unit"], plan["adjacency"]) == ("example", "add-or-remove-one")
    assert "2 of 4 clients have no more than client.batch_size=10" in plan["warnings"][0]


def test_a_full_batch_is_accounted_at_rate_1() -> None:
    protection = ExamplePrivacy(epsilon=2.0).protect(setting([30, 90], 4, training=LocalTraining(3, None)))
    z = protection.noise_multiplier_of(0)
    assert z == protection.noise_multiplier_of(1) and epsilon_of(z, 1.0, 12) == pytest.approx(2.0, rel=2e-3)


def epsilons_by_hand(z: float, rounds: list[list[int]], sizes: list[int]) -> list[float]:
    """Each client's, over all rounds in which it took part."""
    took_part = Counter(client for cohort in rounds for client in cohort)
    steps = [took_part[client] * -(-n // 10) for client, n in enumerate(sizes)]
    return [epsilon_of(z, min(1.0, 10 / n), s) if s else 0.0 for n, s in zip(sizes, steps, strict=True)]


class FreshEngineEveryRound(ExampleProtection):
    """The mistake: whoever accounts a round anew states one round's epsilon for the whole run."""

    def charge(self, round: int, cohort: np.ndarray) -> None:
        self.book.charges.clear()
        super().charge(round, cohort)


class WholeBudgetEveryRound(ExampleProtection):
    """The same mistake mirrored: noise as if one round were all, spent in each."""

    @property
    def planned(self) -> int:
        return 1


class OneOverTheNumberOfBatches(ExampleProtection):
    """The mistake of make_private: 1 / len(loader) is not the rate where the last batch is short."""

    def __init__(self, part: ExamplePrivacy, setting: Setting) -> None:
        super().__init__(part, setting)
        self.accounts = [account._replace(rate=1 / account.steps) for account in self.accounts]


def check_books(kind: type[ExampleProtection]) -> None:
    sizes, rounds = [40, 40, 25], [[0, 1], [0, 2], [], [0, 1]]
    part = ExamplePrivacy(noise_multiplier=2.5)
    protection = kind(part, setting(sizes, rounds=4))
    for round, cohort in enumerate(rounds, 1):
        protection.charge(round, np.array(cohort, dtype=np.int64))
        so_far = epsilons_by_hand(2.5, rounds[:round], sizes)
        assert protection.client_epsilons(3).tolist() == pytest.approx(so_far, rel=1e-6)
        assert protection.columns()["epsilon"] == pytest.approx(max(so_far), rel=1e-6)
    assert protection.ledger()["epsilon"] == pytest.approx(max(so_far), rel=1e-6)


def check_promise(kind: type[ExampleProtection]) -> None:
    protection = kind(ExamplePrivacy(epsilon=2.0), setting([40, 25], rounds=6))
    play(protection, [[0, 1]] * 6)
    for client, (rate, steps) in enumerate([(0.25, 4), (0.4, 3)]):
        assert epsilon_of(protection.noise_multiplier_of(client), rate, 6 * steps) <= 2.0


def test_epsilon_composes_over_the_whole_run() -> None:
    check_books(ExampleProtection)
    for trap in (FreshEngineEveryRound, OneOverTheNumberOfBatches):
        with pytest.raises(AssertionError):
            check_books(trap)


def test_the_budget_lasts_for_the_whole_run() -> None:
    check_promise(ExampleProtection)
    with pytest.raises(AssertionError):
        check_promise(WholeBudgetEveryRound)


def test_fewer_participations_need_less_noise_and_are_enforced() -> None:
    every = ExamplePrivacy(epsilon=2.0).protect(setting([40] * 3))
    twice = ExamplePrivacy(epsilon=2.0, max_participations=2).protect(setting([40] * 3))
    assert twice.noise_multiplier_of(0) < every.noise_multiplier_of(0)
    play(twice, [[0, 1], [0]])
    assert twice.eligible(3).tolist() == [1, 2]  # type: ignore[union-attr]
    play(twice, [[1, 2], [2]], first=3)
    assert twice.eligible(5).tolist() == [] and twice.rounds_left(2) == 0  # type: ignore[union-attr]
    assert twice.client_epsilons(3).max() <= 2.0
    unlimited = ExamplePrivacy(noise_multiplier=1.0).protect(setting([40] * 3))
    assert unlimited.eligible(1) is None and unlimited.rounds_left(7) == 7


def test_a_client_leaves_before_the_round_that_would_exceed_its_budget() -> None:
    sizes = [100, 40]
    protection = ExamplePrivacy(noise_multiplier=2.0, budget=2.0).protect(setting(sizes, rounds=20, sampling="all"))
    played = 0
    while protection.rounds_left(20 - played):
        eligible = protection.eligible(played + 1)
        assert eligible is not None and len(eligible)
        play(protection, [eligible.tolist()], first=played + 1)
        played += 1
    small, large = protection.participations()[1], protection.participations()[0]
    assert 0 < small < large == played <= 20
    assert (protection.client_epsilons(2) <= 2.0).all()
    assert epsilon_of(2.0, 0.25, 4 * int(small)) <= 2.0 < epsilon_of(2.0, 0.25, 4 * int(small + 1))
    with pytest.raises(FedsimError, match=r"privacy\.budget=0\.01 does not pay"):
        ExamplePrivacy(noise_multiplier=1.0, budget=0.01).protect(setting(sizes))


def test_more_rounds_after_a_resume_are_not_paid_by_less_noise() -> None:
    before = ExamplePrivacy(epsilon=2.0).protect(setting([40, 25], rounds=3))
    play(before, [[0], [0, 1], [0]])
    after = ExamplePrivacy(epsilon=2.0).protect(setting([40, 25], rounds=9))
    after.load_state(before.state())
    assert after.z.tolist() == before.z.tolist()
    assert after.eligible(4).tolist() == [1]  # type: ignore[union-attr]
    assert after.client_epsilons(2).tolist() == before.client_epsilons(2).tolist()
    play(after, [[1], [1]], first=4)
    assert len(after.eligible(6)) == 0 and after.client_epsilons(2).max() <= 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize("secure", [False, True])
def test_a_killed_round_counts_again_where_its_noise_is_fresh(tmp_path: Path, secure: bool) -> None:
    part, journal = ExamplePrivacy(noise_multiplier=1.0, secure_rng=secure), tmp_path / "journal.jsonl"
    before = part.protect(setting([40, 25]))
    before.keep_journal(journal, None)
    play(before, [[0]])
    checkpoint = before.state()
    play(before, [[0]], first=2)
    after = part.protect(setting([40, 25]))
    after.load_state(checkpoint)
    after.keep_journal(journal, 1)
    play(after, [[0]], first=2)
    assert after.participations().tolist() == [3 if secure else 2, 0]


# Classes of clients


@pytest.mark.parametrize("number", [1, 5, 16, 17, 300])
def test_no_class_is_charged_less_than_a_client_in_it(number: int) -> None:
    draw = np.random.default_rng(number)
    sizes = draw.choice(np.arange(11, 3000), size=number, replace=False)
    rates = 10 / sizes
    found = classes(rates)
    assert len(np.unique(found)) <= MAX_ACCOUNTS and found.min() == 0
    if number <= MAX_ACCOUNTS:
        assert len(np.unique(found)) == number
    for kind in np.unique(found):
        inside = np.sort(rates[found == kind])
        between = (rates > inside[0]) & (rates < inside[-1])
        assert (found[between] == kind).all()  # neighbours
        assert inside[-1] / inside[0] <= (rates.max() / rates.min()) ** (2 / MAX_ACCOUNTS)


def test_no_client_spends_more_than_is_stated_where_accounts_are_shared() -> None:
    sizes = np.random.default_rng(0).choice(np.arange(5, 900), size=40, replace=False).tolist()
    protection = ExamplePrivacy(noise_multiplier=2.5).protect(setting([*sizes, 0], rounds=2))
    assert len(protection.accounts) <= MAX_ACCOUNTS
    play(protection, [list(range(40))] * 2)
    stated = protection.client_epsilons(41)
    assert stated[40] == 0
    for client in range(0, 40, 13):
        true = epsilon_of(2.5, min(1.0, 10 / sizes[client]), 2 * -(-sizes[client] // 10))
        assert 0.7 * stated[client] < true <= stated[client] + 1e-3  # an upper bound, and not a wild one


# Groups with promises of their own

BUDGETS = {"careful": {"share": 0.3, "epsilon": 1.0}, "open": {"share": 0.7, "epsilon": 3.0}}


def test_groups_have_their_shares_and_depend_on_the_seed_alone() -> None:
    groups = draw_groups([0.3, 0.7], 50, seed=1)
    assert np.bincount(groups).tolist() == [15, 35]
    assert (groups == draw_groups([0.3, 0.7], 50, seed=1)).all()
    assert not (groups == draw_groups([0.3, 0.7], 50, seed=2)).all()
    assert np.bincount(draw_groups([1 / 3] * 3, 10, seed=0)).sum() == 10


def test_each_group_gets_its_own_epsilon() -> None:
    protection = ExamplePrivacy(budgets=BUDGETS).protect(setting([40] * 10, rounds=3))
    play(protection, [list(range(10))] * 3)
    groups = draw_groups([0.3, 0.7], 10, seed=3)
    epsilons = protection.client_epsilons(10)
    for group, promised in enumerate((1.0, 3.0)):
        assert (epsilons[groups == group] == pytest.approx(promised, rel=2e-3)) and (
            epsilons[groups == group] <= promised
        ).all()
    assert protection.ledger()["epsilon"] == pytest.approx(3.0, rel=2e-3)
    same_noise = ExamplePrivacy(noise_multiplier=3.0, budgets=BUDGETS).protect(setting([40] * 10, rounds=12))
    for round in range(1, 13):
        same_noise.charge(round, same_noise.eligible(round))  # type: ignore[arg-type]
    counts = same_noise.participations()
    assert counts[groups == 0].max() < counts[groups == 1].min()
    assert (same_noise.client_epsilons(10) <= np.where(groups == 0, 1.0, 3.0)).all()


# Noise


def test_the_noise_is_gaussian_and_named() -> None:
    protection = ExamplePrivacy(noise_multiplier=1.0).protect(setting([40] * 3))
    one = protection.draw_noise(20_000, 2.5, 1, 2, "dp-sgd noise 0")
    assert kstest(one.numpy() / 2.5, "norm").pvalue > 1e-6
    assert torch.equal(one, protection.draw_noise(20_000, 2.5, 1, 2, "dp-sgd noise 0"))
    for words in ((2, 2, "dp-sgd noise 0"), (1, 1, "dp-sgd noise 0"), (1, 2, "dp-sgd noise 1")):
        assert not torch.equal(one, protection.draw_noise(20_000, 2.5, *words))


@pytest.mark.parametrize("secure", [False, True])
def test_the_chances_are_uniform(secure: bool) -> None:
    protection = ExamplePrivacy(noise_multiplier=1.0, secure_rng=secure).protect(setting([40] * 3))
    chances = protection.draw_chances(20_000, 1, 2, "dp-sgd batch 0")
    assert chances.dtype == torch.float64 and float(chances.min()) >= 0 and float(chances.max()) < 1
    assert kstest(chances.numpy(), "uniform").pvalue > 1e-6


def test_secure_noise_and_batches_cannot_be_reproduced() -> None:
    protection = ExamplePrivacy(noise_multiplier=1.0, secure_rng=True).protect(setting([40] * 3))

    def draws() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - what must not matter
        return protection.draw_noise(100, 1.0, 1, 2, "x"), protection.draw_chances(100, 1, 2, "x")

    (noise, chances), (again, others) = draws(), draws()
    assert not torch.equal(noise, again) and not torch.equal(chances, others)
    assert protection.ledger()["generator"] == SECURE


def test_a_round_that_is_not_played_to_the_bit_again_draws_anew() -> None:
    for deterministic in (True, False):
        protection = ExamplePrivacy(noise_multiplier=1.0).protect(setting([40] * 3, deterministic=deterministic))
        drawn = []
        for _ in range(2):
            play(protection, [[0]])
            drawn.append((protection.draw_noise(9, 1.0, 1, 0, "x"), protection.draw_chances(9, 1, 0, "x")))
        assert all(torch.equal(a, b) == deterministic for a, b in zip(*drawn, strict=True))


# What is said, and what is refused


def test_the_ledger_says_everything() -> None:
    protection = ExamplePrivacy(noise_multiplier=2.0, clip_norm=0.8).protect(setting([40, 25, 200]))
    play(protection, [[0, 1], [2]])
    ledger = protection.ledger()
    expected: dict[str, Any] = {
        "mechanism": "DP-SGD, flat clipping",
        "unit": "example",
        "adjacency": "add-or-remove-one",
        "sampling": "poisson batches on the device",
        "clip_norm": 0.8,
        "sensitivity": 0.8,
        "noise_multiplier": 2.0,
        "trust": "nobody outside the device",
        "delta": DELTA,
        "rounds": 2,
        "rounds_planned": 6,
        "budget": None,
        "participations": {"most": 1, "limit": None},
        "sampling_rate": 0.4,
        "steps_per_round": 3,
    }
    assert {key: ledger[key] for key in expected} == expected
    assert ledger["epsilon"] == pytest.approx(epsilon_of(2.0, 0.4, 3), rel=1e-6) == ledger["epsilon_by"]["pld"]
    assert "PLD" in ledger["accountant"] and "for research only" in ledger["generator"]
    assert set(Protection().ledger()) - set(ledger) == {"warnings"}
    assert any("held-out" in caveat for caveat in ledger["caveats"])


def test_without_noise_no_epsilon_is_stated() -> None:
    protection = ExamplePrivacy(noise_multiplier=0.0).protect(setting([40]))
    play(protection, [[0]])
    assert protection.plan()["epsilon"] is None and protection.ledger()["epsilon"] is None
    assert protection.columns() == {"epsilon": None, "clients_spent": 0}
    assert "no epsilon can be stated" in protection.plan()["warnings"][0]


def test_removed_noise_changes_the_draws_and_not_the_claim() -> None:
    protection = ExamplePrivacy(epsilon=4.0).protect(setting([40]))
    claim = protection.plan()
    protection.noise_removed = True
    assert protection.local_steps.noise_multiplier(0) == 0 and protection.plan() == claim
    assert "removed on purpose" in protection.ledger()["caveats"][0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "privacy.epsilon and privacy.noise_multiplier exclude each other and neither"),
        ({"epsilon": 4.0, "noise_multiplier": 1.0}, "both are given"),
        ({"epsilon": -1.0}, "privacy.epsilon=-1"),
        ({"noise_multiplier": -1.0}, "privacy.noise_multiplier=-1"),
        ({"epsilon": 1.0, "delta": 0.05}, "privacy.delta=0.05 is not below 1/20"),
        ({"epsilon": 1.0, "clip_norm": 0.0}, "privacy.clip_norm=0"),
        ({"epsilon": 1.0, "clipping": "flatt"}, "did you mean flat"),
        ({"epsilon": 1.0, "way": "ghost"}, "privacy.way=ghost"),
        ({"epsilon": 1.0, "max_participations": 0}, "privacy.max_participations=0"),
        ({"epsilon": 1.0, "secure_rng": 1}, "privacy.secure_rng=1"),
        ({"epsilon": 1.0, "target_quantile": 1.0}, "privacy.target_quantile=1"),
        ({"noise_multiplier": 3.0, "clipping": "adaptive", "count_noise": 1.0}, "privacy.count_noise=1"),
        ({"epsilon": 1.0, "budgets": BUDGETS}, "privacy.epsilon and privacy.budgets exclude"),
        ({"budgets": {"a": {"share": 0.5, "epsilon": 1.0}}}, "add up to 0.5"),
        ({"budgets": {"a": 0.5}}, "privacy.budgets.a=0.5"),
        ({"budgets": {"a": {"share": 1.0, "epsilon": 0.0}}}, "privacy.budgets.a.epsilon=0"),
    ],
)
def test_wrong_keys_are_refused_in_a_sentence(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(FedsimError) as refused:
        ExamplePrivacy(**keys).protect(setting([20, 50]))
    assert words in str(refused.value) and ". " not in str(refused.value)


def test_settings_that_it_does_not_cover_are_refused() -> None:
    part = ExamplePrivacy(epsilon=1.0)
    with pytest.raises(FedsimError, match="beside their update"):
        part.protect(setting([40], one_vector=False))
    with pytest.raises(FedsimError, match="no client has training examples"):
        part.protect(setting([0, 0]))
    assert part.protect(setting([40], linear=False)).unit == "example"  # medians of private models are as private


def test_no_groups_are_none() -> None:
    assert read_groups({}) == ()


# Whole runs

PRIVATE = ("privacy=example", "privacy.noise_multiplier=2", "client.batch_size=5", "client.lr=0.05")


def test_a_run_keeps_its_books_and_sends_no_loss() -> None:
    made = parts(*PRIVATE, "sampler=fixed", "sampler.cohort_size=3")
    arrays = play_run(made)
    rows = made.server.state.rows
    assert [row["train_loss"] for row in rows] == [None, None] and rows[0]["num_examples"] > 0
    epsilons = made.server.protection.client_epsilons(8)
    assert epsilons is not None and rows[1]["epsilon"] == epsilons.max() >= rows[0]["epsilon"] > 0
    assert (epsilons > 0).sum() == sum(1 for count in made.server.state.participations.values() if count)
    again = parts(*PRIVATE, "sampler=fixed", "sampler.cohort_size=3")
    assert same_bits(arrays, play_run(again))
    louder = parts(*PRIVATE, "sampler=fixed", "sampler.cohort_size=3", "privacy.noise_multiplier=3")
    assert not same_bits(arrays, play_run(louder))


@pytest.mark.usefixtures("no_pictures")
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    keys = (*PRIVATE, "privacy.clipping=adaptive", "checkpoint.every=1")
    whole = run_into(tmp_path / "whole", tiny(*keys, "rounds=4"))
    run_into(tmp_path / "parts", tiny(*keys, "rounds=2"))
    grown = resume(tmp_path / "parts", rounds=4)
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()
    books = [json.loads((tmp_path / name / "privacy.json").read_text()) for name in ("whole", "parts")]
    assert books[0] == books[1] and books[0]["rounds"] == 4
    assert whole["rounds"] == grown["rounds"]


def test_an_algorithm_that_sends_more_is_refused() -> None:
    with pytest.raises(FedsimError, match="strategy=qfedavg makes clients send numbers"):
        parts(*PRIVATE, "strategy=qfedavg")
