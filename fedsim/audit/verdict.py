"""From what canaries showed to a verdict: two lower bounds on epsilon beside the claim, and what they mean in words."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedsim.audit.one_run import OneRun, one_run_bound
from fedsim.audit.scores import Scores

if TYPE_CHECKING:
    from fedsim.privacy.accounting import Mechanism

LEAST_PAIRS = 20
"""Fewer single releases with or without a canary say nothing of the noise."""


class Claim(NamedTuple):
    """What was promised: epsilon (infinite where nothing was) at delta, by so many releases of `mechanism`."""

    epsilon: float
    delta: float
    mechanism: Mechanism | None
    releases: int


class GaussianBound(NamedTuple):
    """epsilon: the run's, from below, where releases are Gaussian. mu: of one of them. noise_multiplier: at most."""

    epsilon: float
    mu: float
    noise_multiplier: float
    pairs: tuple[int, int]


def judge(
    scores: Scores, claim: Claim, confidence: float, *, gap: float = 1.0, whole_run: bool = False
) -> dict[str, Any]:
    """The keys of audit.json that hold numbers and the verdict.

    Each bound holds with confidence 1 - (1 - c) / 2, so that both together hold with c. gap: how far apart, in clipping
    norms, neighbouring releases are. whole_run: the noise is correlated over rounds, so that only whole runs are Gaussian.
    """
    each = 1 - (1 - confidence) / 2
    one = one_run_bound(scores.total, scores.included, claim.delta, each)
    gaussian = gaussian_bound(scores, claim, each, gap, whole_run)
    observed = max(one.epsilon, gaussian.epsilon if gaussian else 0.0)
    failed = observed > claim.epsilon
    return {
        "canaries": len(scores.included),
        "claimed": finite(claim.epsilon),
        "observed": finite(observed),
        "delta": claim.delta,
        "confidence": confidence,
        "verdict": "FAIL" if failed else "PASS",
        "bounds": {"one_run": _one_run(one), "gaussian": _gaussian(gaussian)},
        "most_it_could_show": one.most,
        "words": words(claim, observed, confidence, one, gaussian, len(scores.included)),
        "plot": scores.histogram(),
    }


def gaussian_bound(
    scores: Scores, claim: Claim, confidence: float, gap: float, whole_run: bool
) -> GaussianBound | None:
    """None where there is no mechanism to compose, or too little was seen of it."""
    from fedsim.privacy import accounting
    from fedsim.privacy.evidence import gaussian_mu_lower_bound

    if claim.mechanism is None or claim.releases == 0:
        return None
    inside, outside = scores.pairs_in, scores.pairs_out
    mechanism, count = claim.mechanism, claim.releases
    if whole_run:  # a matrix mechanism is one Gaussian for the whole run; its score is one number a canary
        inside, outside = scores.total[scores.times > 0], scores.total[scores.times == 0]
        mechanism, count = accounting.GaussianReleases(1.0, "none"), 1
    if min(len(inside), len(outside)) < LEAST_PAIRS:
        return None
    mu = max(float(gaussian_mu_lower_bound(inside, outside, confidence)), 0.0)
    pairs = (len(inside), len(outside))
    if mu == 0:
        return GaussianBound(0.0, 0.0, math.inf, pairs)
    noise_multiplier = gap / mu
    less = dataclasses.replace(mechanism, noise_multiplier=noise_multiplier)  # type: ignore[type-var]
    return GaussianBound(accounting.spend(less, count, claim.delta).epsilon, mu, noise_multiplier, pairs)


def words(
    claim: Claim, observed: float, confidence: float, one: OneRun, gaussian: GaussianBound | None, canaries: int
) -> list[str]:
    """Sentences for the report, the verdict first."""
    sure = f"{100 * confidence:.3g}%"
    claimed = f"claimed at most {shown(claim.epsilon)}" if math.isfinite(claim.epsilon) else "no epsilon was claimed"
    lines = [f"At delta {claim.delta:g}: {claimed}, observed at least {shown(observed)} ({sure})."]
    if observed > claim.epsilon:
        lines.append(
            "The bound exceeds the claim: the mechanism does not do what it promises, and its epsilon cannot be trusted."
        )
    lines.append(
        f"Whatever the noise may be: at least {shown(one.epsilon)}, from {one.correct} of {one.guesses} right guesses of who among "
        f"{canaries:,} canaries was in (arXiv 2305.08846); {shown(one.most)} is the most that this could have shown."
    )
    if gaussian is None and one.most < claim.epsilon:
        lines.append(
            "This audit could not have failed: too few canaries took part; raise audit.canaries, rounds or sampler.cohort_size."
        )
    if gaussian is not None:
        limit = f"at most {shown(gaussian.noise_multiplier)}" if gaussian.mu else "of no upper bound"
        lines.append(
            f"If releases are Gaussian and compose as accounted: at least {shown(gaussian.epsilon)}, from a noise multiplier "
            f"{limit}, seen in {gaussian.pairs[0]:,} releases with a canary and {gaussian.pairs[1]:,} without."
        )
    return lines


def shown(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if math.isfinite(value) else "infinity"


def finite(value: float) -> float | None:
    """As JSON has it."""
    return float(value) if np.isfinite(value) else None


def _one_run(one: OneRun) -> dict[str, Any]:
    return {"epsilon": one.epsilon, "guesses": one.guesses, "correct": one.correct}


def _gaussian(bound: GaussianBound | None) -> dict[str, Any] | None:
    if bound is None:
        return None
    return {
        "epsilon": finite(bound.epsilon),
        "mu": bound.mu,
        "noise_multiplier_at_most": finite(bound.noise_multiplier),
        "releases_with": bound.pairs[0],
        "releases_without": bound.pairs[1],
    }
