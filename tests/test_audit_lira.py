"""Membership inference: against the known best curve, scikit-learn's curve, and a model that has learnt its examples by heart."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import tiny_dataset
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from test_audit_canary import DELTA, setting
from torch import nn

from fedsim.audit.base import Subject
from fedsim.audit.lira import LiraAudit, halves, logit_scores, membership_inference, roc, train_centrally
from fedsim.privacy.base import Protection
from fedsim.training import OBJECTIVES, ClientHalf, LocalTraining, Trainer
from fedsim.training.trainer import model_arrays
from fedsim.types import FedsimError


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


def subject(epochs: int) -> Subject:
    data = tiny_dataset(rows=400, features=20, noise=4.0)
    x, y = data.train.x, data.train.y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))
    start = {name: array.clone() for name, array in model_arrays(model).items()}
    settings = LocalTraining(epochs=epochs, batch_size=50, lr=0.5)
    trainer = Trainer(model, OBJECTIVES["classification"], settings, ClientHalf(), seed=0)
    train = train_centrally(trainer, start, rounds=2)
    arrays = train(x[:150], y[:150], 99)
    return Subject(
        arrays, model, OBJECTIVES["classification"], data.task, x[:150], y[:150], x[150:], y[150:], train, 0.1
    )


def test_a_model_that_knows_its_examples_by_heart_gives_them_away() -> None:
    audit = LiraAudit(shadows=8, candidates=300)
    audit.begin(setting(), Protection(), {})
    audit.examine(subject(epochs=12))
    found = audit.finish(None, DELTA, None)
    assert found["roc"]["auc"] > 0.65
    assert (
        found["roc"]["members"] == 150 and "not a bound" in found["words"][1] and "no false alarm" in found["words"][0]
    )
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_shadows_differ_and_wrong_keys_and_tasks_are_refused() -> None:
    made = subject(epochs=1)
    first, again, other = (made.train(made.member_x, made.member_y, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(FedsimError, match=r"audit\.shadows=5"):
        LiraAudit(shadows=5)
    audit = LiraAudit()
    audit.begin(setting(), Protection(), {})
    with pytest.raises(FedsimError, match="audit=none"):
        audit.examine(made._replace(task="regression"))
