"""Membership inference: against the known best curve, scikit-learn's curve, and a model that has learnt its examples by heart."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close, parts, play, run_into, same_bits, tiny, tiny_dataset
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from test_audit_canary import DELTA, setting
from torch import Tensor, nn

from fedsim.audit.base import Subject
from fedsim.audit.lira import LiraAudit, halves, logit_scores, membership_inference, roc, shadow_training
from fedsim.parts import Parts
from fedsim.privacy.base import Protection
from fedsim.subject import subject_of
from fedsim.training import OBJECTIVES, ClientHalf, LocalTraining, Trainer
from fedsim.training.arrays import model_arrays
from fedsim.training.dpsgd import PrivateClient
from fedsim.types import FedsimError, Params


@pytest.mark.parametrize("shadows", [16, 128])
def test_gaussian_scores_give_the_best_curve_there_is(shadows: int) -> None:
    draw, examples, apart = np.random.default_rng(0), 20_000, 2.0
    difficulty = draw.normal(0, 10, examples)  # a threshold for all examples would find next to nothing
    memberships = halves(shadows, examples, 1)
    member = np.arange(examples) % 2 == 0
    scores = difficulty + apart * memberships + draw.normal(size=memberships.shape)
    target = difficulty + apart * member + draw.normal(size=examples)
    curve = membership_inference(scores, memberships, target, member)
    lost = np.sqrt(1 + 1 / (shadows // 2))  # means of few shadows are not known exactly
    best = norm.cdf(norm.ppf(0.01) + apart)
    assert curve.auc == pytest.approx(norm.cdf(apart / np.sqrt(2) / lost), abs=0.01)
    assert (0.6 if shadows == 16 else 0.85) * best < curve.tpr_at(0.01) < 1.05 * best
    assert curve.tpr_at(0.01) > 3 * roc(target, member).tpr_at(0.01)


def test_the_curve_is_scikit_learns() -> None:
    draw = np.random.default_rng(1)
    member, scores = draw.random(500) < 0.3, draw.integers(0, 30, 500).astype(float)
    curve = roc(scores, member)
    fpr, tpr, _ = roc_curve(member, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.fpr, fpr)
    np.testing.assert_allclose(curve.tpr, tpr)
    assert curve.auc == pytest.approx(roc_auc_score(member, scores))


def test_scores_are_logits_of_the_true_class() -> None:
    model, x, y = nn.Linear(4, 3), torch.randn(6, 4), torch.arange(6) % 3
    p = torch.softmax(model(x), 1).gather(1, y[:, None]).squeeze(1).detach().numpy()
    np.testing.assert_allclose(logit_scores(model, x, y), np.log(p / (1 - p)), rtol=1e-4)


def test_every_candidate_is_in_half_of_the_shadows() -> None:
    assert set(halves(8, 51, 0).sum(0)) == {4}
    with pytest.raises(ValueError, match="two shadows"):
        membership_inference(np.zeros((2, 3)), halves(2, 3, 0), np.zeros(3), np.ones(3, dtype=bool))


def subject(epochs: int) -> tuple[Subject, Params]:
    """A finished run of one client with 150 examples, and the arrays that it began with."""
    data = tiny_dataset(rows=400, features=20, noise=8.0)
    x, y = data.train.x, data.train.y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))
    start = {name: array.clone() for name, array in model_arrays(model).items()}
    settings = LocalTraining(epochs=epochs, batch_size=50, lr=0.05)
    trainer = Trainer(model, OBJECTIVES["classification"], settings, ClientHalf(), seed=0)
    train = shadow_training(trainer, rounds=2, client=0)
    arrays = train(start, x[:150], y[:150], 99)
    kind = OBJECTIVES["classification"]
    return Subject(arrays, model, kind, data.task, x[:150], y[:150], x[150:], y[150:], train, 0.1), start


def test_a_model_that_knows_its_examples_by_heart_gives_them_away() -> None:
    audit = LiraAudit(shadows=8, candidates=300)
    made, start = subject(epochs=12)
    audit.begin(setting(), Protection(), start)
    audit.examine(made)
    found = audit.finish(None, DELTA, None)
    assert found["roc"]["auc"] > 0.8
    assert (
        found["roc"]["members"] == 150 and "not a bound" in found["words"][1] and "no false alarm" in found["words"][0]
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_wrong_keys_and_tasks_are_refused() -> None:
    made, start = subject(epochs=1)
    with pytest.raises(FedsimError, match=r"audit\.shadows=5"):
        LiraAudit(shadows=5)
    audit = LiraAudit()
    audit.begin(setting(), Protection(), start)
    with pytest.raises(FedsimError, match="audit=none"):
        audit.examine(made._replace(task="regression"))


# The shadows of a run

SHADOWED = ("client.batch_size=5", "client.lr=0.1", "sampler=fixed", "sampler.cohort_size=3")
ALL_OF_TWO = ("population.num_clients=2", "sampler.cohort_size=2")
PRIVATE = (*SHADOWED, "privacy=example", "privacy.noise_multiplier=2")


def start_of(made: Parts) -> Params:
    return {name: array.clone() for name, array in model_arrays(made.model).items()}


@pytest.mark.parametrize(
    "keys", [SHADOWED, PRIVATE, (*PRIVATE, "privacy.secure_rng=true")], ids=["plain", "private", "secure"]
)
def test_a_shadow_has_draws_of_its_own(keys: tuple[str, ...]) -> None:
    made = parts(*keys)
    start = start_of(made)
    play(made)
    found = subject_of(made)
    first, again, other = (found.train(start, found.member_x, found.member_y, number) for number in (1, 1, 2))
    assert same_bits(first, again) == ("privacy.secure_rng=true" not in keys)
    assert not same_bits(first, other)


def test_no_draw_is_shared_between_shadows_and_with_the_run() -> None:
    made = parts(*PRIVATE, "privacy.clipping=adaptive")
    rule, seen = made.trainer.local_steps, Counter[tuple[int, int, str]]()
    assert rule is not None

    def noise(size: int, std: float, round: int, client: int, purpose: str) -> Tensor:
        seen[round, client, purpose] += 1
        return rule.noise(size, std, round, client, purpose)

    def chances(size: int, round: int, client: int, purpose: str) -> Tensor:
        seen[round, client, purpose] += 1
        return rule.chances(size, round, client, purpose)

    made.trainer.local_steps = dataclasses.replace(rule, noise=noise, chances=chances)
    start = start_of(made)
    play(made)
    found, in_run = subject_of(made), sum(seen.values())
    for number in range(3):
        found.train(start, found.member_x, found.member_y, number)
    assert set(seen.values()) == {1} and sum(seen.values()) > in_run > 0


def test_a_shadow_keeps_its_clipping_norm_from_round_to_round(monkeypatch: pytest.MonkeyPatch) -> None:
    made = parts(*PRIVATE, "privacy.clipping=adaptive", "privacy.noise_multiplier=0.01")
    begun: list[float] = []
    inner = PrivateClient.__init__

    def watching(self: PrivateClient, *words: Any) -> None:
        inner(self, *words)
        begun.append(self.clip_norm)

    monkeypatch.setattr(PrivateClient, "__init__", watching)
    _, x, y = made.population.training_data(0)
    shadow_training(made.trainer, 3, 0)(start_of(made), x, y, 0)
    assert begun[0] == 1.0 and len(set(begun)) == 3


def test_the_noise_is_that_of_a_client_that_took_part() -> None:
    made = parts(*PRIVATE)
    play(made)
    asked: list[int] = []
    rule = made.trainer.local_steps
    assert rule is not None
    made.trainer.local_steps = dataclasses.replace(rule, noise_multiplier=lambda client: asked.append(client) or 1.0)
    found, taken = subject_of(made), made.server.state.participations
    found.train(start_of(made), found.member_x, found.member_y, 0)
    assert len(set(asked)) == 1 and taken[asked[0]] == max(taken.values()) > 0


@pytest.mark.parametrize("keys", [(), PRIVATE[len(SHADOWED) :]], ids=["plain", "private"])
@pytest.mark.parametrize("other", [(), ("strategy=central",), ALL_OF_TWO], ids=["eight", "central", "two"])
@pytest.mark.usefixtures("no_pictures")
def test_runs_of_every_kind_are_audited(tmp_path: Path, keys: tuple[str, ...], other: tuple[str, ...]) -> None:
    cfg = tiny(*SHADOWED, *keys, *other, "audit=lira", "audit.shadows=4", "audit.candidates=40")
    run_into(tmp_path, cfg)
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["kind"] == "lira" and found["roc"]["members"] == 20 and 0 <= found["roc"]["auc"] <= 1


def test_shadows_begin_where_the_run_began_and_not_with_what_it_learnt() -> None:
    made = parts(
        *SHADOWED, "model=custom", "model._target_=test_audit_lira.Pretrained", "audit=lira", "audit.shadows=4"
    )
    begun = start_of(made)
    play(made)
    starts: list[Params] = []

    def train(start: Params, x: Tensor, y: Tensor, number: int) -> Params:
        starts.append(start)
        return start

    made.server.audit.examine(subject_of(made)._replace(train=train))
    assert len(starts) == 4
    for start in starts:
        assert_close(start, begun, 1e-6)  # means of a weight that all have differ from it by rounding
    with pytest.raises(AssertionError):
        assert_close(made.server.state.arrays, begun, 1e-2)


class Pretrained(nn.Module):
    """A backbone that stays, a weight in no layer, and running statistics."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.backbone, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, num_outputs)
        self.shift = nn.Parameter(torch.randn(8))
        self.backbone.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.backbone(x)) + self.shift))
