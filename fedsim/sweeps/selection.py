"""What it costs in privacy to choose among a sweep's runs, in sentences: see `privacy/tuning.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fedsim.resolvers import key_of
from fedsim.results.files import read_json
from fedsim.results.formats import at_most
from fedsim.sweeps.state import Cell, Sweep


class Private(NamedTuple):
    """A finished run that states an epsilon, and its ledger."""

    cell: Cell
    ledger: dict[str, Any]


def selection_words(sweep: Sweep, sweep_dir: Path) -> list[str]:
    """Nothing where fewer than two runs state an epsilon, for then there is no choice among them."""
    private = private_runs(sweep, sweep_dir)
    if len(private) < 2:
        return []
    epsilons = [run.ledger["epsilon"] for run in private]
    least, most = at_most(min(epsilons)), at_most(max(epsilons))
    each = f"epsilon {least}" if least == most else f"epsilon {least} to {most}"
    words = [
        f"{len(private)} runs state {each}, each for itself alone: choosing the best of them by private data costs more."
    ]
    return [*words, _price(sweep, private)]


def private_runs(sweep: Sweep, sweep_dir: Path) -> list[Private]:
    """The finished cells with an epsilon."""
    folders = [(cell, sweep_dir / cell["folder"] / "privacy.json") for cell in sweep.those("finished")]
    found = [Private(cell, read_json(path, str(path.parent))) for cell, path in folders if cell["epsilon"] is not None]
    return [run for run in found if run.ledger["epsilon"] is not None]


def _price(sweep: Sweep, private: list[Private]) -> str:
    from fedsim.privacy.tuning import Curve, Trials, composed, worst

    whom = {(run.ledger["unit"], run.ledger["adjacency"]) for run in private}
    if len(whom) > 1:
        return "They protect different units or adjacencies, so no one number says what the choice costs."
    delta = max(run.ledger["delta"] for run in private)
    curves = [curve for run in private if (curve := Curve.of(run.ledger)) is not None]
    if len(curves) == len(private):
        together = f"epsilon {at_most(composed(curves).epsilon(delta))} at delta {delta:g}"
    else:
        epsilon, delta = (sum(run.ledger[key] for run in private) for key in ("epsilon", "delta"))
        together = f"epsilon {at_most(epsilon)} at delta {delta:.4g}"
    if sweep.those("failed"):
        together += " (and more, as far as the trials that failed had come)"
    why = _why_not(sweep, private)
    if sweep.drawn is None or why or len(curves) < len(private):
        return (
            f"{why or 'A fixed grid or an adaptive search'} is not covered by the theorems for random numbers of trials "
            f"(arXiv 2110.03620), so the choice costs at best what all {len(private)} trials compose to, {together}."
        )
    trials = Trials(**sweep.drawn)
    chosen = at_most(trials.selected(worst(curves)).epsilon(delta))
    theorem = "Theorem 6" if trials.distribution == "poisson" else "Theorem 2"
    return (
        f"Their number was drawn ({trials.words()}) and each was drawn by itself, so showing the best alone costs epsilon "
        f"{chosen} at delta {delta:g} (arXiv 2110.03620, {theorem}), where all would cost {together}; this holds while the "
        "others, their number and this folder stay secret, and they are scored by data that are not private."
    )


def _why_not(sweep: Sweep, private: list[Private]) -> str:
    """What the theorems ask for and the trials have not; empty where they have it."""
    seeds = [one for run in private for one in run.cell["overrides"] if key_of(one) == "seed"]
    if sweep.drawn is not None and len(set(seeds)) < len(private):
        return "A search whose trials share their noise, since they share a seed,"
    return ""
