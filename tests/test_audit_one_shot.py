"""The one-shot estimate: its formula against the exact one, and the audit on simulated sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_audit_canary import DELTA, GaussianSum, setting, spend_exactly

from fedsim.audit.base import Subject
from fedsim.audit.one_shot import OneShotAudit, gaussians_epsilon
from fedsim.privacy.accounting import GaussianReleases
from fedsim.privacy.base import Protection
from fedsim.transforms import on_device
from fedsim.types import FedsimError, Params


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
def test_two_gaussians_of_one_width_give_the_gaussian_mechanisms_epsilon(z: float) -> None:
    exact = spend_exactly(GaussianReleases(z, "none"), 1, DELTA).epsilon
    assert gaussians_epsilon((0.0, z), (1.0, z), DELTA) == pytest.approx(exact, rel=1e-3)
    assert gaussians_epsilon((1.0, z), (0.0, z), DELTA) == pytest.approx(exact, rel=1e-3)


def test_equal_gaussians_are_not_told_apart_and_unequal_widths_are() -> None:
    assert gaussians_epsilon((0.3, 2.0), (0.3, 2.0), DELTA) == 0.0
    assert gaussians_epsilon((0.0, 1.0), (0.0, 2.0), DELTA) > 1.0


def estimated(z: float, rounds: int = 4, canaries: int = 200) -> dict:
    like: Params = {"weight": torch.zeros(100, 100), "seen": torch.zeros((), dtype=torch.int64)}
    audit, protection, of = OneShotAudit(canaries), GaussianSum(z), setting("all", rounds=rounds)
    of = replace(of, shapes={"weight": like["weight"].shape})
    audit.begin(of, protection, like)
    model, draw = torch.zeros(100, 100), torch.Generator().manual_seed(5)
    for round in range(1, rounds + 1):
        if round == 3:  # killed and resumed
            audit, kept = OneShotAudit(canaries), audit.state()
            audit.begin(of, protection, {"weight": model, "seen": torch.zeros((), dtype=torch.int64)})
            audit.load_state(kept)
        model = model + torch.randn(100, 100, generator=draw) * z * 0.5
        for update in audit.join(round):
            model = model + on_device(protection.transforms, update, 0, round)["weight"]
    nothing = torch.zeros(0)
    whole = {"weight": model, "seen": torch.ones((), dtype=torch.int64)}
    audit.examine(
        Subject(
            whole,
            torch.nn.Identity(),
            lambda *_: nothing,
            "classification",
            nothing,
            nothing,
            nothing,
            nothing,
            lambda *_: {},
            0.1,
        )
    )
    return audit.finish(10.0, DELTA, None)


def test_the_estimate_is_near_the_truth_and_says_that_it_is_one() -> None:
    exact = spend_exactly(GaussianReleases(2.0, "none"), 4, DELTA).epsilon
    found = estimated(2.0)
    assert found["observed"] == pytest.approx(exact, rel=0.35)
    assert found["estimate"] and "not bounded" in found["words"][1] and found["confidence"] is None
    assert np.sum(found["plot"]["cosine"]["in"]) == 200 == np.sum(found["plot"]["cosine"]["out"])


def test_less_noise_gives_a_larger_estimate() -> None:
    assert estimated(1.0, canaries=100)["observed"] > 2 * estimated(4.0, canaries=100)["observed"]


def test_only_private_sums_of_clients_are_audited_so() -> None:
    with pytest.raises(FedsimError, match="audit=one_shot"):
        OneShotAudit().begin(setting(), Protection(), {"w": torch.zeros(3)})
