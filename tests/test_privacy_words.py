"""What the report says of a run's privacy: no more than was accounted, and nothing where an audit refutes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_run import AUDIT, LEDGER, make_private, make_run

from fedsim.privacy.base import Protection
from fedsim.results.audit_words import evidence
from fedsim.results.finished import read_run
from fedsim.results.formats import DASH
from fedsim.results.privacy_rows import rows_of
from fedsim.results.privacy_words import NO_PRIVACY, Promise
from fedsim.results.wording import story

FAILED = {"verdict": "FAIL", "observed": 9.87654}
GUARANTEE = "differentially private with"


def section(audit: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return Promise(LEDGER | changes, audit or {}).section()


def rows(**changes: Any) -> dict[str, str]:
    return dict(section(**changes)["rows"])


# The promise


def test_a_run_without_a_mechanism_promises_nothing() -> None:
    promise = Promise(Protection().ledger())
    assert promise.section() == {"words": [NO_PRIVACY], "heading": None, "rows": [], "caveats": []}
    assert promise.tile() == (DASH, "no guarantee") and promise.clause() == "" and promise.alarm() is None


def test_a_promise_names_unit_adjacency_adversary_and_trust() -> None:
    told = section()
    assert told["words"][0] == (
        "The model is differentially private with ε = 7.985 at δ = 1e-5 for one client's whole data (adding or removing it), "
        "against anyone who sees the models of all rounds but not who took part. Trusted: the server."
    )
    assert told["caveats"] == ["Measurements are outside the guarantee."] and told["heading"] is None
    assert Promise(LEDGER).tile() == ("7.985", "δ = 1e-5, for one client")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unit": "example"}, "for one example of one client (adding or removing it)"),
        ({"unit": "user"}, "for one user's whole data"),
        ({"unit": "household"}, "for one household (adding or removing it)"),
        ({"unit": None}, "ε = 7.985 at δ = 1e-5 (adding or removing it)"),
        ({"adjacency": "replace-one"}, "for one client's whole data (replacing it by another)"),
        ({"adjacency": "zero-out"}, "(having it or nothing in its place)"),
        ({"adjacency": "edit distance 2"}, "(edit distance 2)"),
        ({"trust": "nobody"}, "What each client sends is differentially private with"),
        ({"trust": "nobody outside the device"}, "Trusted: nobody outside the device."),
        ({"generator": "seeded with 3"}, "The noise's generator is seeded with 3."),
    ],
)
def test_each_unit_and_adjacency_in_words(changes: dict[str, Any], words: str) -> None:
    assert words in " ".join(section(**changes)["words"])


def test_old_ledgers_give_whole_sentences() -> None:
    words = Promise({"mechanism": "gaussian", "epsilon": 4.0, "delta": 1e-5}).words()
    assert words == ["The model is differentially private with ε = 4 at δ = 1e-5."]
    (only,) = Promise({}).words()
    assert only == (
        "privacy.json names no mechanism but no ε can be stated, so no guarantee is claimed: the run's records do not say why."
    )
    assert Promise({}).clause() == ""


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 4.0, 7.5])
def test_the_chance_of_a_right_guess_bounds_the_best_attack(epsilon: float) -> None:
    """Randomised response with a leak of delta is the worst (epsilon, delta) mechanism: its success is the bound."""
    delta = 1e-3
    answers = np.array([delta, (1 - delta) / (1 + math.exp(-epsilon)), (1 - delta) / (1 + math.exp(epsilon)), 0.0])
    success = 100 * np.maximum(answers, answers[::-1]).sum() / 2
    words = section(epsilon=epsilon, delta=delta)["words"][1]
    told = float(words.split("at most ")[1].split("%")[0])
    assert success <= told + 1e-9 and told - success <= 0.1
    assert "with or without a given client's data" in words and "(a blind one: 50%)" in words


def test_an_epsilon_that_rules_nothing_out_is_said_to() -> None:
    assert "does not rule out that nearly every guess is right" in section(epsilon=12.0)["words"][1]


def test_clients_that_spent_differently_are_told_of() -> None:
    spent = np.array([0.0, 1.0, 3.0, np.nan])
    assert Promise(LEDGER, {}, spent).words()[-1] == (
        "Clients spent between 0 and 3, the median 1; the promise is that of the client that spent most."
    )
    assert not any("median" in words for words in Promise(LEDGER, {}, np.full(3, 2.0)).words())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise_multiplier": 0.0}, "the noise multiplier is 0."),
        ({"reason": "sampling is unknown"}, "sampling is unknown."),
        ({"caveats": ["Other.", "The noise is odd, so no epsilon can be stated."]}, "The noise is odd, so no epsilon"),
        ({"caveats": None}, "the run's records do not say why."),
    ],
)
def test_without_an_epsilon_there_is_a_reason_and_no_number(changes: dict[str, Any], reason: str) -> None:
    promise = Promise(LEDGER | {"epsilon": None, "epsilon_by": {"pld": None}} | changes)
    (words,) = promise.words()
    assert words.startswith("A privacy mechanism was at work but no ε can be stated") and reason in words
    assert promise.tile() == (DASH, "no guarantee") and "no ε can be stated" in promise.clause()
    assert not any(name.startswith("ε") for name, _ in promise.section()["rows"])


# The table


def test_the_table_has_every_key_in_words() -> None:
    told = rows()
    assert list(told)[:5] == ["Mechanism", "Unit", "Adjacency", "Sampling", "Noise multiplier"]
    assert told["ε by PLD (claimed)"] == "7.985" and told["ε by RDP"] == "8.61" and told["ε by PRV"] == DASH
    assert told["Rounds released"] == "50 of 60 planned" and told["Budget (ε)"] == "8"
    assert told["Participations"] == "9 by the client that took part most; no limit"
    assert told["Clipping norm"] == told["Sensitivity"] == "0.5" and told["Denominator"] == "20"
    assert told["Accountant"] == "PLD, dp-accounting 0.6.0" and told["Noise generator"] == "the operating system's"
    assert told["Trusted"] == "the server" and told["Against"].startswith("anyone") and told["δ"] == "1e-5"


def test_the_table_tells_limits_budgets_and_rounds_that_count_twice() -> None:
    told = rows(
        rounds=61,
        participations={"most": 3, "limit": 3},
        limits={"participations": 3, "separation": 20},
        budget=None,
        accountant="a proof of our own",
        trust=None,
    )
    assert told["Rounds released"] == "61 of 60 planned; a round that was done again counts again"
    assert told["Participations"].endswith("at most 3 allowed") and told["Budget (ε)"] == "none"
    assert told["Limits"] == "at most 3 rounds a client, at least 20 apart" and told["Trusted"] == DASH
    assert told["ε (claimed)"] == "7.985" and told["ε by PLD"] == "7.985"  # none of them is named as the claim


def test_keys_that_nobody_foresaw_are_shown_as_they_are() -> None:
    told = rows(
        bits=32,
        granularity=0.00123456,
        masked=True,
        noise="skellam",
        z_range=[0.5, 2.0],
        epsilon_of_one_message=1.23411,
        budgets={"low": {"epsilon": 1, "share": 0.5}, "high": {"epsilon": 8, "share": 0.5}},
        nothing=None,
        empty=[],
    )
    assert (told["Bits"], told["Granularity"], told["Masked"], told["Noise"]) == ("32", "0.001235", "yes", "skellam")
    assert told["Z range"] == "0.5, 2" and told["Epsilon of one message"] == "1.235"
    assert told["Budgets"] == "low epsilon 1, share 0.5; high epsilon 8, share 0.5"
    assert "Nothing" not in told and "Empty" not in told
    assert rows_of({}, None, False)[0] == ("Mechanism", DASH)


# The audit


def test_a_passed_audit_stands_beside_the_promise() -> None:
    told = evidence(AUDIT)
    assert told is not None and not told["failed"]
    assert told["figures"] == [
        ("Claimed at most", "ε = 7.985", ""),
        ("Observed at least", "ε = 2.345", "95% confidence"),
        ("Canaries", "1,000", "put in to be found"),
        ("The most it could show", "ε = 4.2", "assuming nothing of the noise"),
    ]
    assert told["verdict"].startswith("PASS") and "no proof" in told["verdict"] and told["words"] == AUDIT["words"]
    promise = Promise(LEDGER, AUDIT)
    assert promise.standing == "stated" and promise.alarm() is None
    assert evidence({}) is None


@pytest.mark.parametrize(
    ("ledger", "audit"),
    [
        (LEDGER, AUDIT | FAILED),
        (LEDGER | {"epsilon": None, "refuted_epsilon": 7.98412}, AUDIT | FAILED),
        (LEDGER, AUDIT | FAILED | {"verdict": None}),  # more observed than claimed, whatever the verdict says
    ],
)
def test_a_failed_audit_leaves_no_guarantee(ledger: dict[str, Any], audit: dict[str, Any]) -> None:
    promise = Promise(ledger, audit)
    assert promise.alarm() == (
        "The audit refutes the privacy claim: claimed at most ε = 7.985, observed at least 9.876 (95% confidence). "
        "No guarantee holds for this run."
    )
    assert promise.tile() == ("refuted", "claimed 7.985, observed 9.876")
    told = promise.section()
    assert told["heading"] == "What was claimed" and ("ε by PLD (was claimed)", "7.985") in told["rows"]
    assert not any(GUARANTEE in words for words in told["words"]) and promise.in_brief() is None
    found = evidence(audit)
    assert found is not None and found["failed"] and found["verdict"].startswith("FAIL")


def test_a_refuted_ledger_alone_makes_no_promise() -> None:
    promise = Promise(LEDGER | {"epsilon": None, "refuted_epsilon": 7.98412})
    assert promise.standing == "refuted" and "claimed 7.985" in promise.tile()[1]


def test_an_infinite_observation_is_null_in_json() -> None:
    audit = AUDIT | {
        "verdict": "FAIL",
        "observed": None,
        "bounds": {"one_run": {"epsilon": 3.0}, "gaussian": {"epsilon": None}},
    }
    assert "observed at least ∞ (95% confidence, if releases are Gaussian)" in str(Promise(LEDGER, audit).alarm())


def test_noise_left_out_on_purpose_protects_no_one() -> None:
    promise = Promise(LEDGER, AUDIT | {"noise_removed": True})
    assert "left out on purpose" in str(promise.alarm()) and promise.tile()[0] == DASH
    assert not any(GUARANTEE in words for words in promise.words()) and promise.in_brief() is None
    assert Promise(LEDGER | {"noise_removed": True}).standing == "removed"
    assert "left out on purpose" in str(Promise(LEDGER, AUDIT | FAILED | {"noise_removed": True}).alarm())


def test_estimates_and_attacks_refute_nothing() -> None:
    estimate = AUDIT | {"kind": "one_shot", "estimate": True, "verdict": None, "confidence": None, "observed": 12.0}
    told = evidence(estimate)
    assert told is not None and not told["failed"] and told["verdict"].startswith("An estimate, not a bound")
    assert ("Estimated", "ε ≈ 12", "no bound") in told["figures"]
    assert Promise(LEDGER, estimate).standing == "stated"
    told = evidence({"kind": "lira", "claimed": None, "observed": None, "verdict": None, "words": ["AUC 0.6."]})
    assert told is not None and told["figures"] == [] and told["words"] == ["AUC 0.6."]
    told = evidence(AUDIT | {"claimed": None})
    assert told is not None and told["figures"][0] == ("Claimed at most", DASH, "no ε claimed")
    assert "nothing to refute" in told["verdict"]


# The sentence at the top


@pytest.mark.parametrize(
    ("audit", "clause"),
    [
        (None, "on mnist5k (differentially private, ε = 7.985 at δ = 1e-5 for one client's whole data) to "),
        (AUDIT | FAILED, "on mnist5k (with a privacy mechanism whose claim the audit refutes) to "),
        (
            AUDIT | {"noise_removed": True},
            "on mnist5k (with a privacy mechanism whose noise was left out on purpose) to ",
        ),
    ],
)
def test_the_story_carries_the_promise(tmp_path: Path, audit: dict[str, Any] | None, clause: str) -> None:
    folder = make_private(make_run(tmp_path / "run", clients=12, rounds=2), LEDGER, audit)
    assert clause in story(read_run(folder))
