"""Canary clients in simulated private sums: a promise that is kept passes, one that is broken in any of four ways fails."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import parts
from helpers import play as play_run
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.audit.base import Audit, NoAudit
from fedsim.audit.canary import CanaryAudit
from fedsim.audit.directions import Directions
from fedsim.audit.scores import MOST_PAIRS, Scores
from fedsim.privacy import accounting
from fedsim.privacy.accounting import GaussianReleases
from fedsim.privacy.base import Protection, Setting
from fedsim.privacy.clipping import Clip
from fedsim.privacy.user import UserPrivacy
from fedsim.training import LocalTraining
from fedsim.transforms import on_device
from fedsim.types import FedsimError, Params

LIKE: Params = {"weight": torch.zeros(60, 50), "seen": torch.zeros((), dtype=torch.int64), "bias": torch.zeros(50)}
DELTA = 1e-5


def setting(sampling: str = "all", cohort: float = 100, clients: int = 100, rounds: int = 5, seed: int = 0) -> Setting:
    shapes = {name: array.shape for name, array in LIKE.items()}
    examples = np.full(clients, 10)
    return Setting(seed, rounds, clients, sampling, cohort, examples, LocalTraining(), "fedavg", True, True, shapes)


class GaussianSum(Protection):
    """A clipped sum with noise of `std` clipping norms, whatever was promised."""

    unit, sums = "client", True

    def __init__(self, std: float, clips: bool = True) -> None:
        self.std, self.clip = std, Clip(0.5)
        self.transforms = (self.clip,) if clips else ()
        self.max_participations: int | None = None


def spend_exactly(mechanism: GaussianReleases, count: int, delta: float) -> accounting.Spent:
    """The closed form for composed Gaussians without sampling (Balle and Wang 2018, arXiv 1805.06530, theorem 8)."""
    mu = math.sqrt(count) / mechanism.noise_multiplier

    def excess(epsilon: float) -> float:
        low = norm.logcdf(-mu / 2 - epsilon / mu)
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + low) - delta)

    return accounting.Spent(brentq(excess, 0.0, 40 + mu**2 + 10 * mu), "exact", {})


def play(audit: Audit, protection: GaussianSum, of: Setting, start: int = 1) -> None:
    """The lead's part: canaries through the device half, noise on the sum, all but the real clients' part shown."""
    for round in range(start, of.rounds + 1):
        draw = torch.Generator().manual_seed(1000 * of.seed + round)
        residual = {n: torch.randn(a.shape, generator=draw) * protection.std * 0.5 for n, a in LIKE.items()}
        for update in audit.join(round):
            for name, array in on_device(protection.transforms, update, 0, round).items():
                residual[name] += array
        audit.observe(round, residual)


def audited(std: float, claimed_z: float = 1.0, clips: bool = True, canaries: int = 1000, **law: Any) -> dict[str, Any]:
    of, audit, protection = setting(**law), CanaryAudit(canaries), GaussianSum(std, clips)
    audit.begin(of, protection, LIKE)
    play(audit, protection, of)
    rate = of.cohort_size / of.num_clients
    mechanism = GaussianReleases(claimed_z, "poisson" if of.sampling == "poisson" else "none", rate=rate)
    return audit.finish(accounting.spend(mechanism, of.rounds, DELTA).epsilon, DELTA, mechanism)


def test_a_promise_that_is_kept_passes_and_is_nearly_met_by_the_gaussian_bound() -> None:
    found = audited(1.0)
    assert found["verdict"] == "PASS"
    assert 0.75 * found["claimed"] < found["bounds"]["gaussian"]["epsilon"] <= found["claimed"]
    assert 1.0 <= found["bounds"]["gaussian"]["noise_multiplier_at_most"] < 1.25
    assert 0.5 < found["bounds"]["one_run"]["epsilon"] < found["claimed"]
    assert found["observed"] == found["bounds"]["gaussian"]["epsilon"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "claimed at most" in found["words"][0] and "(95%)" in found["words"][0]


def test_noise_left_out_fails_by_a_wide_margin() -> None:
    found = audited(0.0)
    assert found["verdict"] == "FAIL"
    assert found["bounds"]["gaussian"]["epsilon"] > 5 * found["claimed"]
    assert found["bounds"]["one_run"]["epsilon"] == pytest.approx(found["most_it_could_show"])
    assert "exceeds the claim" in found["words"][1]


def test_noise_a_fifth_too_small_fails_by_the_gaussian_bound() -> None:
    found = audited(0.8)
    assert found["verdict"] == "FAIL"
    assert found["bounds"]["gaussian"]["epsilon"] > found["claimed"] > found["bounds"]["one_run"]["epsilon"]


def test_missing_clipping_fails() -> None:
    assert audited(1.0, clips=False)["verdict"] == "FAIL"


def test_sampled_canaries_pass_where_the_noise_is_right_and_fail_where_it_is_not() -> None:
    law = {"sampling": "poisson", "cohort": 20, "clients": 100, "rounds": 20}
    good, bad = audited(1.0, **law), audited(0.8, **law)
    assert (good["verdict"], bad["verdict"]) == ("PASS", "FAIL")
    assert good["bounds"]["gaussian"]["releases_with"] == pytest.approx(500 * 0.2 * 20, rel=0.15)


def test_amplification_that_was_claimed_but_did_not_happen_fails() -> None:
    of, audit, protection = setting("all", rounds=30), CanaryAudit(3000), GaussianSum(2.0)
    audit.begin(of, protection, LIKE)
    play(audit, protection, of)  # everyone takes part in every round,
    mechanism = GaussianReleases(2.0, "poisson", rate=0.01)  # and the accountant was told: one in a hundred
    claimed = accounting.spend(mechanism, of.rounds, DELTA).epsilon
    found = audit.finish(claimed, DELTA, mechanism)
    assert found["verdict"] == "FAIL" and found["bounds"]["one_run"]["epsilon"] > claimed


def test_a_right_promise_fails_in_at_most_one_of_twenty_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "spend", spend_exactly)  # seconds become milliseconds
    failed = sum(audited(1.0, canaries=200, rounds=2, seed=seed)["verdict"] == "FAIL" for seed in range(40))
    assert failed <= 2 + 2 * np.sqrt(40 * 0.05 * 0.95)


def test_canaries_are_sampled_as_the_run_samples_its_clients() -> None:
    audit = CanaryAudit(1000)
    audit.begin(setting("fixed", cohort=7, clients=100), GaussianSum(1.0), LIKE)
    assert {int(audit.cohort(round).sum()) for round in range(1, 9)} == {70}
    assert not np.array_equal(audit.cohort(1), audit.cohort(2))
    audit.begin(setting("poisson", cohort=7, clients=100), GaussianSum(1.0), LIKE)
    sizes = [int(audit.cohort(round).sum()) for round in range(1, 200)]
    assert np.mean(sizes) == pytest.approx(70, abs=2) and np.std(sizes) == pytest.approx(np.sqrt(70 * 0.93), rel=0.2)
    audit.begin(setting("all"), GaussianSum(1.0), LIKE)
    assert len(audit.join(1)) == audit.scores.included.sum()
    assert audit.scores.included.mean() == pytest.approx(0.5, abs=0.06)
    with pytest.raises(FedsimError, match=r"audit\.canaries=50 .* at least 100"):
        CanaryAudit(50).begin(setting("fixed", cohort=1, clients=100), GaussianSum(1.0), LIKE)


def test_canaries_keep_to_the_limit_on_participations() -> None:
    audit, protection, of = CanaryAudit(100), GaussianSum(1.0), setting("all", rounds=5)
    protection.max_participations = 2
    audit.begin(of, protection, LIKE)
    play(audit, protection, of)
    assert set(audit.scores.times[audit.scores.included]) == {2}


def test_directions_are_orthonormal_and_measured_right() -> None:
    directions = Directions.draw(LIKE, 1000, seed=3)
    assert len(directions) == 1000 and directions.width == 3
    vectors = [directions.vector(i, 2.0) for i in (0, 1, 999)]
    flat = torch.stack([torch.cat([v["weight"].flatten(), v["bias"]]) for v in vectors])
    torch.testing.assert_close(flat @ flat.T, 4 * torch.eye(3))
    assert all(v["seen"] == 0 and v["weight"].shape == (60, 50) for v in vectors)
    along = directions.along(vectors[1])
    assert along[1] == pytest.approx(2.0) and np.abs(np.delete(along, 1)).max() == 0
    assert len(Directions.draw({"w": torch.zeros(30)}, 1000, seed=3)) == 30


def test_a_resumed_audit_says_the_same() -> None:
    of, whole, half, rest = setting("poisson", 30, rounds=6), *(CanaryAudit(200) for _ in range(3))
    mechanism = GaussianReleases(1.0, "poisson", rate=0.3)
    protection = GaussianSum(1.0)
    for audit in (whole, half, rest):
        audit.begin(of, protection, LIKE)
    play(whole, protection, of)
    play(half, protection, setting("poisson", 30, rounds=3))
    rest.load_state(half.state())
    play(rest, protection, of, start=4)
    assert rest.finish(4.0, DELTA, mechanism) == whole.finish(4.0, DELTA, mechanism)


def test_pairs_are_capped_and_spread_over_releases() -> None:
    scores, draw = Scores(np.ones(30_000, dtype=bool), releases=200), np.random.default_rng(0)
    for release in range(3):
        scores.add(np.full(30_000, float(release)), np.arange(30_000) < 15_000, draw)
    for pairs in (scores.pairs_in, scores.pairs_out):
        assert np.bincount(pairs.astype(int)).tolist() == [100, 100, 100]
    unlimited = Scores(np.ones(30_000, dtype=bool))
    unlimited.add(np.zeros(30_000), np.zeros(30_000, dtype=bool), draw)
    assert len(unlimited.pairs_out) == MOST_PAIRS


def test_without_a_claim_there_is_nothing_to_fail() -> None:
    of, audit, protection = setting(rounds=2), CanaryAudit(100), GaussianSum(0.0)
    audit.begin(of, protection, LIKE)
    play(audit, protection, of)
    found = audit.finish(float("inf"), DELTA, GaussianReleases(0.0, "none"))
    assert found["claimed"] is None and found["verdict"] == "PASS" and "no epsilon was claimed" in found["words"][0]


def test_removed_noise_is_said_and_no_audit_says_nothing() -> None:
    of, audit, protection = setting(rounds=2), CanaryAudit(100, remove_noise=True), GaussianSum(0.0)
    audit.begin(of, protection, LIKE)
    play(audit, protection, of)
    found = audit.finish(2.0, DELTA, GaussianReleases(2.0, "none"))
    assert found["noise_removed"] and any("audit.remove_noise=true" in line for line in found["words"])
    assert list(NoAudit().join(1)) == [] and NoAudit().finish(1.0, DELTA, None) == {} and not NoAudit().remove_noise


@pytest.mark.parametrize("keys", [{"canaries": 3}, {"confidence": 1.0}, {"remove_noise": 1}])
def test_wrong_keys_are_refused_by_name(keys: dict[str, Any]) -> None:
    with pytest.raises(FedsimError, match=r"audit\." + next(iter(keys))):
        CanaryAudit(**keys)


def test_nothing_is_audited_where_nothing_is_promised() -> None:
    with pytest.raises(FedsimError, match="audit=none"):
        CanaryAudit().begin(setting(), Protection(), LIKE)


@pytest.mark.parametrize("sampling", ["poisson", "fixed", "all"])
def test_the_runs_own_mechanism_passes_and_with_its_noise_removed_fails(sampling: str) -> None:
    def found(removed: bool) -> dict[str, Any]:
        of = setting(sampling, cohort=100 if sampling == "all" else 30, rounds=6)
        protection: Any = UserPrivacy(noise_multiplier=2.0, clip_norm=0.3, delta=DELTA).protect(of)
        protection.noise_removed = removed
        audit = CanaryAudit(2000, remove_noise=removed)
        audit.begin(of, protection, LIKE)
        for round in range(1, of.rounds + 1):
            protection.charge(round, np.arange(10))
            total = {name: torch.zeros(array.shape) for name, array in LIKE.items()}
            for update in audit.join(round):
                for name, array in on_device(protection.transforms, update, 0, round).items():
                    total[name] += array
            mean = protection.release(total, round)
            audit.observe(round, {name: array * protection.denominator for name, array in mean.items()})
        claimed = accounting.spend(protection.mechanism, of.rounds, DELTA).epsilon
        return audit.finish(claimed, DELTA, protection.mechanism)

    good, bad = found(False), found(True)
    assert (good["verdict"], bad["verdict"]) == ("PASS", "FAIL")
    assert 2.0 <= good["bounds"]["gaussian"]["noise_multiplier_at_most"] < (3.0 if sampling == "all" else 20.0)


def test_canaries_do_not_vote_on_the_clipping_norm() -> None:
    def norm_after(*audit: str) -> float:
        made = parts("privacy=user", "privacy.noise_multiplier=1", "privacy.clipping=adaptive", "rounds=1", *audit)
        play_run(made)
        return float(getattr(made.server.protection, "clip").clip_norm)  # noqa: B009 - not every protection has one

    alone, beside = norm_after(), norm_after("audit=canary", "audit.canaries=20")
    assert beside == alone != 1.0
