"""Distributed privacy: the noise in the sum is never below the promise, sums never wrap, and what cannot be promised is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import run_into, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.privacy.accounting import GaussianReleases, spend
from fedsim.privacy.base import Setting
from fedsim.privacy.distributed import WRAP_CHANCE, DistributedPrivacy, reach
from fedsim.privacy.distributed_sum import MASKED, DistributedSum
from fedsim.training import LocalTraining
from fedsim.types import FedsimError, Params

LEVEL = 1e-6


def setting(size: int = 100, clients: int = 10, **changes: Any) -> Setting:
    given = {
        "seed": 3,
        "rounds": 4,
        "num_clients": 100,
        "sampling": "fixed",
        "cohort_size": float(clients),
        "num_examples": np.full(100, 20),
        "training": LocalTraining(),
        "strategy": "fedavg",
        "linear": True,
        "one_vector": True,
        "shapes": {"weight": torch.Size([size - 2, 1]), "bias": torch.Size([2])},
    }
    return Setting(**{**given, **changes})


def protect(part: DistributedPrivacy, given: Setting) -> DistributedSum:
    made = part.protect(given)
    assert isinstance(made, DistributedSum)
    return made


class Devices:
    """Clients with memories and a protection of their own, built from the same keys, as another process would."""

    def __init__(self, part: DistributedPrivacy, given: Setting) -> None:
        self.protection = protect(part, given)
        self.memories: dict[int, dict[str, Any]] = {}

    def ask(self, phase: str, payloads: Mapping[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        return {
            client: self.protection.answer(client, phase, payload, self.memories.setdefault(client, {}))
            for client, payload in payloads.items()
        }

    def send(self, update: Params, client: int, round: int) -> Params:
        return self.protection.on_device(update, client, round, self.memories.setdefault(client, {}))


def zeros(given: Setting) -> Params:
    return {name: torch.zeros(shape) for name, shape in given.shapes.items()}


def play(
    server: DistributedSum, devices: Devices, updates: Mapping[int, Params], lost: Collection[int] = (), round: int = 1
) -> Params:
    """The released mean of a round in which `lost` drop out after the keys were shared."""
    cohort = np.array(sorted(updates))
    server.charge(round, cohort)
    devices.protection.heed(server.broadcast())
    server.open_round(round, cohort, devices.ask)
    sent = [devices.send(updates[client], client, round) for client in updates if client not in lost]
    total = server.sent(zeros(server.setting))
    for one in sent:
        assert {name: (a.shape, a.dtype) for name, a in one.items()} == {
            n: (a.shape, a.dtype) for n, a in total.items()
        }
        assert server.refusal(one) is None
        total = {name: total[name] + one[name] for name in total}
    server.close_round(round, np.array([client for client in cohort if client not in lost]), devices.ask)
    return server.release(total, round)


def both(part: DistributedPrivacy, given: Setting) -> tuple[DistributedSum, Devices]:
    return protect(part, given), Devices(part, given)


def random_updates(given: Setting, clients: Collection[int], norm: float) -> dict[int, Params]:
    draw = torch.Generator().manual_seed(0)
    found = {}
    for client in clients:
        update = {name: torch.randn(shape, generator=draw) for name, shape in given.shapes.items()}
        length = math.sqrt(sum(float(a.double().square().sum()) for a in update.values()))
        found[client] = {name: a * (norm / length) for name, a in update.items()}
    return found


# what comes out


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
def test_without_noise_the_release_is_the_clipped_sum_over_the_expected_cohort(bits: int, noise: str) -> None:
    """Whoever dropped out: the denominator does not move. Large updates are clipped."""
    given = setting()
    server, devices = both(DistributedPrivacy(noise_multiplier=0.0, noise=noise, bits=bits, clip_norm=2.0), given)
    updates = random_updates(given, range(10), 1.5) | random_updates(given, [4], 50.0)
    found = play(server, devices, updates, lost=[1, 7, 9])
    step = 2.0 / server.scale
    for name in given.shapes:
        wanted = sum(updates[c][name] / (25.0 if c == 4 else 1.0) for c in range(10) if c not in (1, 7, 9)) / 10
        # each of 7 clients rounds each rotated coordinate by less than a step
        assert float((found[name] - wanted).norm()) < 7 * step * math.sqrt(server.dimension) / 10
        assert float((found[name] - wanted).abs().max()) < 6 * math.sqrt(7) * step / 2 / 10
        assert found[name].dtype == torch.float32


def noise_of(part: DistributedPrivacy, clients: int, lost: int, size: int = 2**14) -> tuple[np.ndarray, DistributedSum]:
    """(coordinates,) the noise in the decoded sum when nobody has anything to say."""
    given = setting(size, clients)
    server, devices = both(part, given)
    found = play(server, devices, {c: zeros(given) for c in range(clients)}, lost=range(lost))
    return np.concatenate([a.double().numpy().ravel() for a in found.values()]) * server.denominator, server


def below_promise(noise: np.ndarray, std: float) -> float:
    """p-value of a noise as small as this if its deviation were `std`."""
    return float(stats.chi2.cdf((noise**2).sum() / std**2, len(noise)))


def above_promise(noise: np.ndarray, std: float) -> float:
    """p-value of a noise as large as this."""
    return float(stats.chi2.sf((noise**2).sum() / std**2, len(noise)))


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
def test_noise_is_the_promise_at_the_worst_dropout_and_more_without(noise: str, secure: bool) -> None:
    """At level 1e-6 over 16,384 coordinates, which would see a deviation wrong by 3%."""
    part = DistributedPrivacy(noise_multiplier=1.3, clip_norm=0.5, noise=noise, secure_rng=secure)
    drawn, _ = noise_of(part, 10, 3)
    assert below_promise(drawn, 0.65) > LEVEL and above_promise(drawn, 0.65) > LEVEL
    assert abs(drawn.mean()) < 5 * 0.65 / math.sqrt(len(drawn))
    drawn, _ = noise_of(part, 10, 0)
    more = 0.65 * math.sqrt(10 / 7)
    assert (
        below_promise(drawn, more) > LEVEL and above_promise(drawn, more) > LEVEL and above_promise(drawn, 0.65) < LEVEL
    )


def test_the_trap_that_dropouts_take_noise_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares made for the whole cohort look right while all survive, and are too small as soon as some do not."""
    part = DistributedPrivacy(noise_multiplier=1.3, clip_norm=0.5)
    monkeypatch.setattr(
        DistributedSum, "share_variance", lambda self, clients: (self.noise_multiplier * self.scale) ** 2 / clients
    )
    drawn, _ = noise_of(part, 10, 0)
    assert below_promise(drawn, 0.65) > LEVEL
    drawn, _ = noise_of(part, 10, 3)
    assert below_promise(drawn, 0.65) < LEVEL


@settings(max_examples=40, deadline=None)
@given(clients=st.integers(2, 2000), tolerance=st.floats(0, 0.49))
def test_shares_sum_to_the_promise_or_more(clients: int, tolerance: float) -> None:
    part = DistributedPrivacy(noise_multiplier=1.0, dropout_tolerance=tolerance)
    least = part.least(clients)
    assert clients - tolerance * clients - 1e-6 <= least <= clients and 2 * least > clients
    assert part.least(clients + 1) >= least


def test_beyond_the_tolerance_there_is_no_release() -> None:
    given = setting()
    server, devices = both(DistributedPrivacy(noise_multiplier=1.0), given)
    with pytest.raises(FedsimError, match=r"6 of 10 clients sent its vector.*fewer than 7.*privacy\.dropout_tolerance"):
        play(server, devices, {c: zeros(given) for c in range(10)}, lost=range(4))


def test_rounds_are_rotated_rounded_and_noised_anew() -> None:
    given = setting(64)
    server, devices = both(DistributedPrivacy(noise_multiplier=1.0), given)
    updates = random_updates(given, range(4), 1.0)
    first, second = (play(server, devices, updates, round=r)["weight"] for r in (1, 2))
    assert not torch.equal(first, second)
    assert not torch.equal(server.signs(1), server.signs(2))


def test_a_seeded_round_is_reproduced_and_a_secure_one_is_not() -> None:
    given = setting(64)
    for secure in (False, True):
        part = DistributedPrivacy(noise_multiplier=1.0, secure_rng=secure)
        once, again = (play(*both(part, given), random_updates(given, range(4), 1.0))["weight"] for _ in range(2))
        assert torch.equal(once, again) == (not secure)


def test_a_round_played_again_with_other_bits_draws_other_noise() -> None:
    """Else the difference of the two would be free of it."""
    for deterministic in (True, False):
        given = setting(64, deterministic=deterministic)
        server, devices = both(DistributedPrivacy(noise_multiplier=1.0), given)
        updates = random_updates(given, range(4), 1.0)
        once, again = (play(server, devices, updates)["weight"] for _ in range(2))
        assert torch.equal(once, again) == deterministic


# wrapping


@pytest.mark.parametrize(
    ("size", "clients", "bits", "z"),
    [(100, 10, 32, 1.0), (100, 10, 16, 1.0), (5000, 50, 16, 2.0), (10**6, 100, 32, 8.0)],
)
def test_a_wrap_is_impossible_by_a_checked_bound(size: int, clients: int, bits: int, z: float) -> None:
    """All clients at the largest rounded coordinate, and the noise's own tail, stay below half the modulus."""
    server = protect(DistributedPrivacy(noise_multiplier=z, bits=bits), setting(size, clients))
    variance = (z * server.scale) ** 2 / 0.7
    tail = stats.norm.isf(WRAP_CHANCE / 2 / server.dimension) * math.sqrt(variance)
    assert clients * math.floor(server.mechanism.l2) + tail < 2 ** (bits - 1)  # type: ignore[attr-defined]
    assert reach(server.mechanism, server.part, clients) < 2 ** (bits - 1)  # type: ignore[arg-type]


def test_the_worst_case_of_all_clients_in_one_coordinate_does_not_wrap() -> None:
    """Sixteen bits, and every client sends all of its norm along one coordinate of the rotated vector."""
    given = setting(128, 10)
    part = DistributedPrivacy(noise_multiplier=0.0, bits=16)
    server, devices = both(part, given)
    along = {c: {"weight": w[:-2].reshape(-1, 1), "bias": w[-2:]} for c in range(10) for w in [first_row(server)]}
    assert 10 * server.scale > 0.5 * 2**15 / 2
    found = play(server, devices, along)
    np.testing.assert_allclose(found["weight"], along[0]["weight"], atol=2e-3)


def first_row(server: DistributedSum) -> torch.Tensor:
    """A vector of norm 1 that the first round's rotation turns into one coordinate."""
    return (server.signs(1) / math.sqrt(server.dimension)).float()


def test_a_grid_that_could_wrap_is_refused() -> None:
    with pytest.raises(FedsimError, match=r"privacy\.granularity=1e-05 .* wrap at privacy\.bits=16"):
        DistributedPrivacy(noise_multiplier=1.0, bits=16, granularity=1e-5).protect(setting())
    with pytest.raises(FedsimError, match=r"privacy\.bits=16 .* rounding doubles the sensitivity"):
        DistributedPrivacy(noise_multiplier=1.0, bits=16).protect(setting(10**6, 100))


def test_a_grid_that_is_asked_for_is_used_and_paid_for() -> None:
    fine = protect(DistributedPrivacy(noise_multiplier=1.0, clip_norm=3.0, granularity=0.003), setting())
    coarse = protect(DistributedPrivacy(noise_multiplier=1.0, clip_norm=3.0, granularity=0.3), setting())
    assert fine.scale == pytest.approx(1000) and coarse.scale == pytest.approx(10)
    assert coarse.plan()["epsilon"] > 1.2 * fine.plan()["epsilon"]
    assert coarse.ledger()["sensitivity"] > 3.5 > 3.01 > fine.ledger()["sensitivity"] > 3


# the promise


@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize("limit", [None, 2])
def test_epsilon_is_kept_by_the_noise_that_is_solved_for(noise: str, limit: int | None) -> None:
    part = DistributedPrivacy(epsilon=4.0, noise=noise, max_participations=limit)
    plan = protect(part, setting()).plan()
    assert 3.98 < plan["epsilon"] <= 4 and plan["epsilon_by"] == {"pld": None, "rdp": plan["epsilon"], "prv": None}
    # close to, and not below, a Gaussian mechanism of the same noise
    gaussian = spend(GaussianReleases(plan["noise_multiplier"], "none"), limit or 4, 1e-5)
    assert gaussian.epsilon < plan["epsilon"] < 1.03 * gaussian.by["rdp"]


def test_a_client_pays_for_its_own_rounds_only() -> None:
    given = setting(64)
    server, devices = both(DistributedPrivacy(noise_multiplier=2.0, max_participations=2), given)
    for round, cohort in enumerate(([0, 1, 2], [0, 3, 4], [1, 3, 5]), start=1):
        play(server, devices, {c: zeros(given) for c in cohort}, round=round)
    spent = server.client_epsilons(7)
    assert spent is not None
    once, twice = (server.mechanism.epsilon(n, 1e-5) for n in (1, 2))  # type: ignore[attr-defined]
    assert spent.tolist() == [twice, twice, once, twice, once, once, 0]
    assert server.columns()["epsilon"] == twice == server.ledger()["epsilon"]
    eligible = server.eligible(4)
    assert eligible is not None and set(range(6)) - set(eligible.tolist()) == {0, 1, 3}


def test_without_a_limit_the_plan_assumes_every_round() -> None:
    server = protect(DistributedPrivacy(noise_multiplier=2.0), setting(rounds=9))
    assert server.plan()["epsilon"] == server.mechanism.epsilon(9, 1e-5)  # type: ignore[attr-defined]
    assert server.eligible(1) is None


def test_a_budget_stops_the_run_before_it_is_exceeded() -> None:
    given = setting(64, rounds=50)
    server, devices = both(DistributedPrivacy(noise_multiplier=2.0, budget=6.0), given)
    left = server.rounds_left(50)
    cost = server.mechanism.epsilon  # type: ignore[attr-defined]
    assert 1 < left < 50 and cost(left, 1e-5) <= 6 < cost(left + 1, 1e-5)
    play(server, devices, {c: zeros(given) for c in range(3)})
    assert server.rounds_left(49) == left - 1


def test_the_ledger_says_what_was_promised_and_to_whom() -> None:
    given = setting(64)
    server, devices = both(DistributedPrivacy(noise_multiplier=2.0), given)
    play(server, devices, {c: zeros(given) for c in range(10)})
    book = json.loads(json.dumps(server.ledger()))
    assert book["unit"] == "client" and book["adjacency"] == "zero-out" and book["rounds"] == 1
    assert book["denominator"] == 10 and book["sampling"].startswith("none")
    assert book["accountant"] == "RDP, dp-accounting 0.6.0" and "seed" in book["generator"]
    assert "honest but curious" in book["trust"] and "server" in book["against"]
    assert book["sensitivity"] == pytest.approx(1, abs=0.01) and book["delta"] == 1e-5 and book["caveats"]
    cost = server.columns()
    assert cost["secure_aggregation_bytes_up"] > 10 * 64 and cost["secure_aggregation_seconds"] > 0


def test_no_noise_no_epsilon() -> None:
    server, devices = both(DistributedPrivacy(noise_multiplier=0.0), setting(64))
    play(server, devices, {c: zeros(setting(64)) for c in range(4)})
    assert server.plan()["epsilon"] is None and server.ledger()["epsilon_by"]["rdp"] is None


def test_removed_noise_is_really_gone_and_leaves_the_claim() -> None:
    given = setting(64)
    server, devices = both(DistributedPrivacy(noise_multiplier=2.0), given)
    claimed = server.plan()["epsilon"]
    server.noise_removed = True
    found = play(server, devices, {c: zeros(given) for c in range(4)})
    assert not any(a.any() for a in found.values()) and server.plan()["epsilon"] == claimed


def test_a_resumed_run_keeps_its_noise_and_grid_on_every_device() -> None:
    part = DistributedPrivacy(epsilon=4.0, bits=16)
    first = protect(part, setting(5000, 50))
    first.charge(1, np.arange(50))
    longer = setting(5000, 50, rounds=40)
    server, devices = both(part, longer)
    assert server.noise_multiplier > 1.5 * first.noise_multiplier and server.scale != first.scale
    server.load_state(first.state())
    assert (server.noise_multiplier, server.scale) == (first.noise_multiplier, first.scale)
    assert server.ledger()["epsilon"] == first.ledger()["epsilon"] > 0
    found = play(server, devices, {c: zeros(longer) for c in range(50)}, lost=range(15), round=2)
    drawn = np.concatenate([a.double().numpy().ravel() for a in found.values()]) * 50
    assert below_promise(drawn, first.noise_multiplier) > LEVEL < above_promise(drawn, first.noise_multiplier)


# devices that are not there


def test_empty_and_lonely_cohorts() -> None:
    """Nobody: zeros, for there is nothing to hide. One, as Poisson sampling may draw: all the noise that it needs is its own."""
    given = setting(2**14, sampling="poisson")
    server, devices = both(DistributedPrivacy(noise_multiplier=1.0), given)
    found = play(server, devices, {})
    assert {n: a.shape for n, a in found.items()} == given.shapes and not any(a.any() for a in found.values())
    found = play(server, devices, {5: zeros(given)}, round=2)
    drawn = np.concatenate([a.double().numpy().ravel() for a in found.values()]) * 10
    assert below_promise(drawn, 1.0) > LEVEL < above_promise(drawn, 1.0)
    assert server.columns()["secure_aggregation_bytes_up"] == 0
    play(server, devices, {c: zeros(given) for c in range(3)}, round=3)


def test_a_poisson_cohort_larger_than_planned_is_refused() -> None:
    server, devices = both(DistributedPrivacy(noise_multiplier=1.0), setting(sampling="poisson"))
    assert stats.binom.sf(server.largest, 100, 0.1) <= 1e-12 < stats.binom.sf(server.largest - 2, 100, 0.1)
    with pytest.raises(FedsimError, match="sampler=fixed"):
        server.open_round(1, np.arange(server.largest + 1), devices.ask)


def test_a_device_without_keys_of_this_round_sends_nothing() -> None:
    given = setting(64)
    server, devices = both(DistributedPrivacy(noise_multiplier=1.0), given)
    play(server, devices, {c: zeros(given) for c in range(3)})
    for client, round in ((0, 2), (9, 1)):
        with pytest.raises(FedsimError, match=f"no keys for round {round}"):
            devices.send(zeros(given), client, round)
    with pytest.raises(FedsimError, match="a second would uncover"):
        devices.send(zeros(given), 0, 1)


def test_an_update_that_is_not_finite_is_refused() -> None:
    given = setting(64)
    server, devices = both(DistributedPrivacy(noise_multiplier=1.0), given)
    with pytest.raises(FedsimError, match="NaN or Inf"):
        play(server, devices, {0: zeros(given), 1: {**zeros(given), "bias": torch.tensor([math.nan, 0.0])}})


def test_devices_drop_out_by_chance() -> None:
    given = setting(64)
    devices = Devices(DistributedPrivacy(noise_multiplier=1.0, dropout=0.3), given)
    out = []
    for client in range(400):
        devices.ask("advertise", {client: {"round": 1, "clients": 1, "attempt": 0}})
        try:
            devices.send(zeros(given), client, 1)
        except FedsimError as error:
            assert "privacy.dropout" in str(error)
            out.append(client)
    assert stats.binomtest(len(out), 400, 0.3).pvalue > LEVEL


def test_what_a_device_sends_is_checked_for_its_type() -> None:
    server = protect(DistributedPrivacy(noise_multiplier=1.0, bits=16), setting())
    assert server.refusal({MASKED: torch.zeros(128, dtype=torch.int16)}) is None
    assert "16 bits" in str(server.refusal({MASKED: torch.zeros(128)}))


# refusals


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({}, "privacy.epsilon"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "exclude"),
        ({"epsilon": -1.0}, "privacy.epsilon"),
        ({"epsilon": 1.0, "noise": "gaussian"}, "privacy.noise"),
        ({"epsilon": 1.0, "bits": 8}, "privacy.bits=8"),
        ({"epsilon": 1.0, "clip_norm": 0.0}, "privacy.clip_norm"),
        ({"epsilon": 1.0, "granularity": 0.0}, "privacy.granularity"),
        ({"epsilon": 1.0, "dropout_tolerance": 0.5}, "privacy.dropout_tolerance"),
        ({"epsilon": 1.0, "dropout": 1.0}, "privacy.dropout"),
        ({"epsilon": 1.0, "neighbours": 1}, "privacy.neighbours"),
        ({"epsilon": 1.0, "max_participations": 0}, "privacy.max_participations"),
        ({"epsilon": 1.0, "secure_rng": "yes"}, "privacy.secure_rng"),
    ],
)
def test_keys_are_checked(keys: dict[str, Any], word: str) -> None:
    with pytest.raises(FedsimError, match=word):
        DistributedPrivacy(**keys)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"linear": False, "strategy": "fedmedian"}, "strategy=fedmedian"),
        ({"one_vector": False, "strategy": "scaffold"}, "strategy=scaffold"),
        ({"cohort_size": 1.0}, "cohort of 1 has none"),
        ({"num_clients": 5}, None),
        ({"num_clients": 200_000}, r"privacy\.delta"),
    ],
)
def test_settings_that_break_the_promise_are_refused(changes: dict[str, Any], word: str | None) -> None:
    part = DistributedPrivacy(noise_multiplier=1.0)
    if word is None:
        part.protect(setting(**changes))
        return
    with pytest.raises(FedsimError, match=word):
        part.protect(setting(**changes))


# whole runs


RUN = ("privacy=distributed", "privacy.delta=1e-3", "seed=5")


@pytest.mark.usefixtures("no_pictures")
def test_a_whole_run_writes_its_promise_and_its_cost(tmp_path: Path) -> None:
    summary = run_into(tmp_path, tiny(*RUN, "privacy.epsilon=5", "privacy.dropout=0.1", "rounds=3"))
    book = json.loads((tmp_path / "privacy.json").read_text())
    assert book["rounds"] == 3 and 4.9 < book["epsilon"] == summary["epsilon"] <= 5
    rows = pq.read_table(tmp_path / "rounds.parquet").to_pydict()
    assert min(rows["secure_aggregation_bytes_up"]) > 8 * 64 and np.all(np.diff(rows["epsilon"]) > 0)


@pytest.mark.usefixtures("no_pictures")
def test_chunks_do_not_change_a_run(tmp_path: Path) -> None:
    """Sums of integers are exact, so that it does not matter which clients were summed first."""
    models = []
    for chunk in (1, 3, 8):
        run_into(tmp_path / str(chunk), tiny(*RUN, "privacy.noise_multiplier=1", f"grid.chunk_size={chunk}"))
        (arrays,) = (tmp_path / str(chunk)).glob("checkpoints/round_000002/arrays.safetensors")
        models.append(arrays.read_bytes())
    assert models[0] == models[1] == models[2]
