"""What the report says of a run, sentence by sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import BASELINES, make_run

from fedsim.results.finished import read_run, tenths
from fedsim.results.formats import DASH, at_least, at_most, bytes_text, duration
from fedsim.results.wording import failures, gains, spread, story


def test_fairness_of_a_regression_is_that_of_the_loss(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", task="regression", clients=10))
    loss = run.client("loss")
    assert spread(run) == (
        f"On their own held-out rows 10 clients average a loss of {loss.mean():.4g}; the worst client has "
        f"{loss.max():.4g}, the best client {loss.min():.4g}."
    )


def test_gains_compare_like_with_like() -> None:
    summary = {"accuracy": 0.9, "loss": None, "federated": {"accuracy_mean": 0.8}, "baselines": BASELINES}
    told = gains(summary)
    assert told is not None
    assert told["words"].startswith("Federation gained 28.9 points of accuracy against devices that train alone")
    assert told["words"].endswith("and cost 4.5 points of accuracy against having all data in one place.")
    assert told["rows"] == [
        ("Accuracy, test rows", "61.1%", "90.0%", "94.5%"),
        ("Accuracy, clients' own rows, mean", "70.0%", "80.0%", DASH),
    ]


def test_gains_say_so_when_federation_lost() -> None:
    told = gains({"accuracy": 0.5, "baselines": {"local_only": {"accuracy": 0.6}}})
    assert told is not None and told["words"] == (
        "Federation lost 10.0 points of accuracy against devices that train alone."
    )
    told = gains({"loss": 0.5, "baselines": {"central": {"loss": 0.4}}})
    assert told is not None and told["words"] == "Federation cost 0.1 of loss against having all data in one place."
    assert gains({"accuracy": 0.5, "baselines": {}}) is None
    assert gains({"accuracy": None, "baselines": BASELINES}) is None


@pytest.mark.parametrize(
    ("changes", "caveat"),
    [
        ({"accuracy": 0.1, "best_accuracy": 0.1}, "no better than always answering"),
        ({"accuracy": 0.8, "best_accuracy": 0.9, "best_round": 7}, "10.0 points below the best"),
        ({"accuracy": 0.9, "best_accuracy": 0.9}, "but the worst tenth has"),
        ({"accuracy": None, "loss": None}, "nothing can be said"),
    ],
)
def test_the_story_names_the_gravest_caveat(tmp_path: Path, changes: dict[str, Any], caveat: str) -> None:
    assert caveat in story(read_run(make_run(tmp_path / "run", **changes)))


def test_failures_are_counted_or_said_to_be_uncounted(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert failures(run)["words"] == "No client failed."
    run.summary["failures"] = {"count": 5, "clients": 1, "first_reason": "crash"}
    told = failures(run)
    assert told["words"] == "5 of 500 client-rounds (1.0%) failed, on 1 client; what they trained is not in the model."
    assert told["reason"] == "crash"
    run.summary["failures"] = None
    assert "not counted" in str(failures(run)["words"])


def test_cohorts_that_differ_from_round_to_round_are_told_by_their_mean(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert "rounds of 10 out of 100 clients" in story(run)
    run.rounds["cohort_size"][:] = np.where(np.arange(50) % 2, 9, 13)
    assert "rounds of about 11 out of 100 clients" in story(run)
    run.rounds["cohort_size"][:] = np.where(np.arange(50) % 2, 1, 2)
    assert "rounds of about 1.5 out of 100 clients" in story(run)


def test_bounds_are_rounded_to_the_safe_side() -> None:
    assert [at_most(x) for x in (7.98412, 8.0, 4, 0.1, 1e-5, 1.23451e-5, 12345.6, 0.0, None, math.inf)] == [
        *("7.985", "8", "4", "0.1", "1e-5", "1.235e-5", "1.235e+4", "0", DASH, DASH)
    ]
    assert [at_least(x) for x in (7.98499, 8.0, 0.00123456, 0.0, math.nan)] == ["7.984", "8", "0.001234", "0", DASH]


def test_units() -> None:
    assert [bytes_text(n) for n in (0, 999, 12_345, 318e6, 2.5e12)] == [
        "0 bytes",
        "999 bytes",
        "12.3 kB",
        "318 MB",
        "2.5 TB",
    ]
    assert [duration(s) for s in (0.25, 192, 7320, None)] == ["0.25 s", "3 min 12 s", "2 h 2 min", DASH]
    assert tenths(np.arange(20.0)) == (0.5, 18.5)
    assert tenths(np.array([3.0, 1.0])) == (1.0, 3.0)
