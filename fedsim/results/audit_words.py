"""What an audit saw, in sentences and figures, by audit.json. An observed epsilon is rounded down, a claimed one up."""

from __future__ import annotations

import math
from typing import Any

from fedsim.results.formats import DASH, at_least, at_most, count_text, known


def evidence(audit: dict[str, Any]) -> dict[str, Any] | None:
    """The section on the audit: verdict, figures as (name, value, remark), and sentences; None where there was no audit."""
    if not audit:
        return None
    verdict, estimate = audit.get("verdict"), bool(audit.get("estimate"))
    failed = verdict == "FAIL" or exceeds(audit)
    figures = []
    if verdict or estimate or known(audit.get("observed")):
        claimed = audit.get("claimed")
        figures = [
            ("Claimed at most", *((f"ε = {at_most(claimed)}", "") if known(claimed) else (DASH, "no ε claimed"))),
            ("Estimated", f"ε ≈ {_estimate(audit)}", "no bound")
            if estimate
            else ("Observed at least", f"ε = {observed(audit)}", sure(audit)),
        ]
    if known(audit.get("canaries")):
        figures.append(("Canaries", count_text(audit["canaries"]), "put in to be found"))
    if known(audit.get("most_it_could_show")):
        remark = "assuming nothing of the noise" if "one_run" in (audit.get("bounds") or {}) else ""
        figures.append(("The most it could show", f"ε = {at_least(audit['most_it_could_show'])}", remark))
    return {
        "failed": failed,
        "verdict": _verdict(audit, failed),
        "figures": figures,
        "words": [str(words) for words in audit.get("words") or ()],
    }


def _verdict(audit: dict[str, Any], failed: bool) -> str:
    if failed:
        return "FAIL: more was observed than the mechanism claims to allow."
    if audit.get("verdict") == "PASS":
        if not known(audit.get("claimed")):
            return "PASS: no ε was claimed, so there was nothing to refute."
        return "PASS: nothing that the audit saw contradicts the claim. That is no proof of it: a stronger attack may see more."
    if audit.get("estimate"):
        return "An estimate, not a bound: it neither confirms nor refutes the claim."
    return "An attack, not a bound: it neither confirms nor refutes a claim."


def exceeds(audit: dict[str, Any]) -> bool:
    """Whether a bound, not an estimate, is above the claim."""
    claimed, seen = audit.get("claimed"), audit.get("observed")
    return not audit.get("estimate") and known(claimed) and known(seen) and seen > claimed


def observed(audit: dict[str, Any]) -> str:
    """JSON has no infinity: a verdict with no number beside it saw more than any number."""
    seen = audit.get("observed")
    return "∞" if seen is None and audit.get("verdict") == "FAIL" else at_least(seen)


def _estimate(audit: dict[str, Any]) -> str:
    return f"{audit['observed']:.3g}" if known(audit.get("observed")) else "∞"


def sure(audit: dict[str, Any]) -> str:
    """How sure the observation is, and whether the larger of two bounds is the one that takes the noise to be Gaussian."""
    bounds = audit.get("bounds") or {}
    one, gaussian = bounds.get("one_run"), bounds.get("gaussian")
    leans = isinstance(one, dict) and isinstance(gaussian, dict) and _size(gaussian) > _size(one)
    confidence = f"{100 * audit['confidence']:.3g}% confidence" if known(audit.get("confidence")) else ""
    return ", ".join(filter(None, (confidence, "if releases are Gaussian" if leans else "")))


def _size(bound: dict[str, Any]) -> float:
    return bound["epsilon"] if known(bound.get("epsilon")) else math.inf
