"""Mechanisms on the device, played again by their own code: kept promises pass, broken ones fail."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from test_audit_canary import DELTA, LIKE

from fedsim.audit.canary import CanaryAudit
from fedsim.audit.directions import Directions
from fedsim.audit.replay import DPSGDRun, replay_dpsgd
from fedsim.audit.scores import Scores
from fedsim.privacy.base import Setting
from fedsim.privacy.example import ExamplePrivacy
from fedsim.privacy.local import LocalPrivacy
from fedsim.training import LocalTraining
from fedsim.transforms import Transform

TRAINING = LocalTraining(epochs=2, batch_size=10)


def setting(rounds: int = 5) -> Setting:
    shapes = {name: array.shape for name, array in LIKE.items()}
    examples = np.array([40, 100, 0])  # the first samples at 1/4, 8 steps a round; the second at 1/10, 20 steps
    return Setting(3, rounds, 3, "all", 3, examples, TRAINING, "fedavg", True, True, shapes)


def charged(protection: Any, of: Setting) -> Any:
    for round in range(1, of.rounds + 1):
        protection.charge(round, np.array([0, 1]))
    return protection


def found_of(protection: Any, of: Setting, claimed: float, canaries: int = 500) -> dict[str, Any]:
    audit = CanaryAudit(canaries)
    audit.begin(of, protection, LIKE)
    assert list(audit.join(1)) == []
    return audit.finish(claimed, DELTA, getattr(protection, "mechanism", None))


def example(z: float = 1.0, **keys: Any) -> tuple[Any, Setting, float]:
    of = setting()
    protection = charged(ExamplePrivacy(noise_multiplier=z, **keys).protect(of), of)
    return protection, of, float(protection.client_epsilons(3).max())


@pytest.mark.parametrize("keys", [{}, {"clipping": "adaptive"}])
def test_dp_sgd_that_keeps_its_promise_passes(keys: dict[str, Any]) -> None:
    protection, of, claimed = example(**keys)
    found = found_of(protection, of, claimed)
    assert found["verdict"] == "PASS" and found["unit"] == "example"
    assert found["observed"] > 0.4 * claimed
    assert found["bounds"]["gaussian"]["noise_multiplier_at_most"] < 2
    assert "40 steps of DP-SGD at a rate of 0.25" in found["words"][-1] and "client 0" in found["words"][-1]


def test_dp_sgd_whose_noise_is_missing_or_a_fifth_too_small_fails() -> None:
    protection, of, claimed = example()
    protection.noise_removed = True
    assert found_of(protection, of, claimed)["verdict"] == "FAIL"
    protection, of, claimed = example()
    honest = protection.local_steps.noise
    short = lambda size, std, *words: honest(size, 0.8 * std, *words)  # noqa: E731
    protection.local_steps = dataclasses.replace(protection.local_steps, noise=short)
    assert found_of(protection, of, claimed, canaries=2000)["verdict"] == "FAIL"


def test_dp_sgd_that_samples_more_than_it_says_fails() -> None:
    protection, of, claimed = example(z=3.0)
    chances = protection.local_steps.chances
    eager = lambda *words: chances(*words) * 0.2  # noqa: E731 - five times as often
    protection.local_steps = dataclasses.replace(protection.local_steps, chances=eager)
    found = found_of(protection, of, claimed, canaries=2000)
    assert found["bounds"]["one_run"]["epsilon"] > claimed and found["verdict"] == "FAIL"


def test_a_replayed_step_is_the_clipped_sum_and_nothing_else() -> None:
    protection, _, _ = example()
    scores = Scores(np.arange(50) % 2 == 0)
    steps = replay_dpsgd(DPSGDRun(protection.local_steps, TRAINING, 0.0, 0.25, 40), scores, 3, 0, 1e3)
    assert steps == 40
    np.testing.assert_allclose(scores.total, scores.times, atol=1e-3)
    assert scores.times[1::2].max() == 0 and scores.times[::2].mean() == pytest.approx(10, abs=1.5)


def local(z: float = 4.0) -> tuple[Any, Setting, float]:
    of = setting()
    protection = charged(LocalPrivacy(noise_multiplier=z).protect(of), of)
    return protection, of, float(np.max(protection.client_epsilons(3)))


def test_local_messages_that_keep_their_promise_pass() -> None:
    protection, of, claimed = local()
    found = found_of(protection, of, claimed, canaries=2000)
    assert found["verdict"] == "PASS" and found["observed"] > 0.5 * claimed
    assert found["bounds"]["gaussian"]["noise_multiplier_at_most"] > 4.0
    assert "5 messages each" in found["words"][-2]


def test_local_messages_without_noise_or_clipping_fail() -> None:
    protection, of, claimed = local()
    protection.noise_removed = True
    assert found_of(protection, of, claimed)["verdict"] == "FAIL"
    protection, of, claimed = local()
    protection.transforms = (Transform(), *protection.transforms[1:])
    assert found_of(protection, of, claimed)["verdict"] == "FAIL"


def test_the_score_of_one_direction_is_the_one_of_all() -> None:
    directions, draw = Directions.draw(LIKE, 100, seed=1), torch.Generator().manual_seed(0)
    arrays = {name: torch.randn(array.shape, generator=draw) for name, array in LIKE.items()}
    assert directions.product(7, arrays) == pytest.approx(directions.along(arrays)[7])
