"""What a private run promises, in sentences: to whom and against whom, and never more than was accounted.

The numbers are those of privacy.json (the ledger) and audit.json. A claimed epsilon is rounded up, an observed one down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.results.audit_words import exceeds, observed, sure
from fedsim.results.finished import Run
from fedsim.results.formats import DASH, at_most, known, text
from fedsim.results.privacy_rows import rows_of

NO_PRIVACY = "No privacy mechanism: the server sees each client's update."
UNITS = {
    "client": "one client's whole data",
    "user": "one user's whole data",
    "example": "one example of one client",
    "message": "one message of one client",
}
NEIGHBOURS = {
    "add-or-remove-one": "adding or removing it",
    "replace-one": "replacing it by another",
    "zero-out": "having it or nothing in its place",
}
GUESSES = {
    ("client", "add-or-remove-one"): "whether the models were made with or without a given client's data",
    ("client", "zero-out"): "whether the models were made with or without a given client's data",
    ("client", "replace-one"): "which of two given data sets a client holds",
    ("example", "add-or-remove-one"): "whether a given example is among a client's",
    ("example", "zero-out"): "whether a given example was among what came to a client",
    ("example", "replace-one"): "which of two given examples a client holds",
}
REMOVED = "The noise was left out on purpose (audit.remove_noise=true): nothing is protected in this run."


@dataclass(frozen=True)
class Promise:
    """What may be said of a run's privacy.

    ledger: privacy.json. audit: audit.json, empty where there was none. spent: (clients,) their own epsilons, NaN where unknown.
    """

    ledger: dict[str, Any]
    audit: dict[str, Any] = field(default_factory=dict)
    spent: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, run: Run) -> Promise:
        """By the run's files."""
        return cls(run.privacy, run.audit, run.client("epsilon"))

    @property
    def claimed(self) -> Any:
        """The epsilon that the mechanism claims, whether it holds or not; None where there is none."""
        for epsilon in (self.ledger.get("epsilon"), self.ledger.get("refuted_epsilon")):
            if known(epsilon):
                return epsilon
        return None

    @property
    def standing(self) -> str:
        """none: no mechanism. refuted: by the audit. removed: noise left out. unstated: no epsilon. stated: a guarantee."""
        if self.ledger.get("mechanism") == "none":
            return "none"
        if self.audit.get("verdict") == "FAIL" or exceeds(self.audit) or known(self.ledger.get("refuted_epsilon")):
            return "refuted"
        if self.audit.get("noise_removed") is True or self.ledger.get("noise_removed") is True:
            return "removed"
        return "stated" if known(self.ledger.get("epsilon")) else "unstated"

    def in_brief(self) -> str | None:
        """The promise in a few words, as in `ε = 3.9 at δ = 1e-5 for one client's whole data`; None where none holds."""
        if self.standing != "stated":
            return None
        unit = self.ledger.get("unit")
        words = f"ε = {at_most(self.claimed)} at δ = {at_most(self.ledger.get('delta'))}"
        return f"{words} for {UNITS.get(unit, f'one {unit}')}" if unit else words

    def clause(self) -> str:
        """What follows the name of the data in the sentence at the top of the report; empty for a run without privacy."""
        return {
            "stated": f" (differentially private, {self.in_brief()})",
            "refuted": " (with a privacy mechanism whose claim the audit refutes)",
            "removed": " (with a privacy mechanism whose noise was left out on purpose)",
            "unstated": " (with a privacy mechanism, but no ε can be stated)" if self.ledger.get("mechanism") else "",
        }.get(self.standing, "")

    def tile(self) -> tuple[str, str]:
        """(value, remark) of the headline's tile."""
        if self.standing == "refuted":
            return "refuted", f"claimed {_claimed(self)}, observed {observed(self.audit)}"
        if self.standing == "removed":
            return DASH, "noise left out on purpose"
        if self.standing != "stated":
            return DASH, "no guarantee"
        unit = self.ledger.get("unit")
        return at_most(self.claimed), f"δ = {at_most(self.ledger.get('delta'))}" + (f", for one {unit}" if unit else "")

    def alarm(self) -> str | None:
        """What must be read before all else, or None."""
        if self.standing == "removed":
            return REMOVED
        if self.standing != "refuted":
            return None
        words = "The audit refutes the privacy claim"
        if self.claimed is not None or known(self.audit.get("claimed")):
            how_sure = f" ({sure(self.audit)})" if sure(self.audit) else ""
            words += f": claimed at most ε = {_claimed(self)}, observed at least {observed(self.audit)}{how_sure}"
        removed = " The noise had been left out on purpose (audit.remove_noise=true)."
        return f"{words}. No guarantee holds for this run.{removed if self.audit.get('noise_removed') is True else ''}"

    def words(self) -> list[str]:
        """What is promised, to whom and against whom, in sentences."""
        ledger, standing = self.ledger, self.standing
        if standing == "none":
            return [NO_PRIVACY]
        if standing == "refuted":
            return ["No guarantee is stated: the audit observed more than the mechanism claims to allow."]
        if standing == "removed":
            return [REMOVED]
        if standing == "unstated":
            what = "A privacy mechanism was at work" if ledger.get("mechanism") else "privacy.json names no mechanism"
            return [f"{what} but no ε can be stated, so no guarantee is claimed: {_reason(ledger)}"]
        return [self._guarantee(), *filter(None, (self._meaning(), self._spread(), _generator(ledger)))]

    def _guarantee(self) -> str:
        ledger = self.ledger
        nobody = str(ledger.get("trust") or "").startswith("nobody")  # then messages are noisy, and the model by them
        subject = "What each client sends is" if nobody else "The model is"
        adjacency = ledger.get("adjacency")
        words = f"{subject} differentially private with {self.in_brief()}"
        if adjacency:
            words += f" ({NEIGHBOURS.get(adjacency, adjacency)})"
        if ledger.get("against"):
            words += f", against {ledger['against']}"
        return f"{words}. Trusted: {ledger['trust']}." if ledger.get("trust") else f"{words}."

    def _meaning(self) -> str | None:
        """The largest chance of a right guess: TPR and FPR obey both inequalities of (epsilon, delta) (1311.0776, theorem 2.1)."""
        guess = GUESSES.get((str(self.ledger.get("unit")), str(self.ledger.get("adjacency"))))
        delta = self.ledger.get("delta")
        if guess is None or not known(delta):
            return None
        wrong = (1 - delta) * math.exp(-self.claimed) / (1 + math.exp(-self.claimed))
        means = (
            f"Say such an observer knows all other data and must guess {guess}, both being equally likely beforehand"
        )
        if wrong < 1e-4:
            return f"{means}: so large an ε does not rule out that nearly every guess is right."
        digits = 1 if wrong >= 0.001 else 2
        right = math.ceil((1 - wrong) * 100 * 10**digits - 1e-9) / 10**digits
        return f"{means}: the guess is right with a chance of at most {right:.{digits}f}% (a blind one: 50%)."

    def _spread(self) -> str | None:
        spent = self.spent[np.isfinite(self.spent)]
        if len(spent) == 0 or spent.min() == spent.max():
            return None
        low, middle, high = (at_most(float(value)) for value in (spent.min(), np.median(spent), spent.max()))
        return f"Clients spent between {low} and {high}, the median {middle}; the promise is that of the client that spent most."

    def section(self) -> dict[str, Any]:
        """What the template shows: words, rows, caveats, and the heading of the rows where what they say does not hold."""
        if self.standing == "none":
            return {"words": [NO_PRIVACY], "heading": None, "rows": [], "caveats": []}
        doubtful = self.standing in ("refuted", "removed")
        return {
            "words": self.words(),
            "heading": "What was claimed" if doubtful else None,
            "rows": rows_of(self.ledger, self.claimed, doubtful),
            "caveats": [str(caveat) for caveat in self.ledger.get("caveats") or ()],
        }


def _claimed(promise: Promise) -> str:
    return at_most(promise.claimed if promise.claimed is not None else promise.audit.get("claimed"))


def _generator(ledger: dict[str, Any]) -> str | None:
    """A warning where the noise can be drawn again; elsewhere the table's row is enough."""
    generator = str(ledger.get("generator") or "")
    return f"The noise's generator is {generator}." if generator.startswith("seeded") else None


def _reason(ledger: dict[str, Any]) -> str:
    """Why no epsilon is stated, as the end of a sentence."""
    if ledger.get("reason"):
        return text(ledger["reason"]).rstrip(".") + "."
    if ledger.get("noise_multiplier") == 0:
        return "the noise multiplier is 0."
    named = [str(caveat) for caveat in ledger.get("caveats") or () if "no epsilon" in str(caveat).lower()]
    return named[0] if named else "the run's records do not say why."
