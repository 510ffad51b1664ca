"""What is said of a finished run in the end: summary.json, and one line on standard output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsim.parts import Parts
from fedsim.predicting import prediction_of
from fedsim.results.formats import at_least, at_most
from fedsim.results.loggers import without_credentials
from fedsim.results.run import host, peak_memory_mb, versions
from fedsim.rounds import Row

AUDIT_KEYS = ("kind", "verdict", "claimed", "observed", "confidence", "canaries")
"""Of audit.json, what summary.json repeats."""


def summarise(parts: Parts, seconds: float, ledger: dict[str, Any], evidence: dict[str, Any]) -> dict[str, Any]:
    """What summary.json says of a run: its figures, its promise by `ledger`, and what an audit says of that (empty: none)."""
    state, dataset = parts.server.state, parts.population.dataset
    last = state.rows[-1]
    best = max((r for r in state.rows if r["accuracy"] is not None), key=lambda r: r["accuracy"], default=None)
    trained = sum(state.participations.values())
    train_seconds = sum(row["train_seconds"] for row in state.rows)
    return {
        "experiment": parts.name,
        "seed": parts.server.seed,
        "rounds": state.round,
        "rounds_asked": parts.server.rounds,
        "num_clients": parts.population.num_holders,
        "cohort_size": parts.server.sampler.expected_size(parts.server.num_clients),
        "accuracy": last["accuracy"],
        "loss": last["loss"],
        "best_accuracy": best["accuracy"] if best else None,
        "best_round": best["round"] if best else None,
        "macro_f1": last["macro_f1"],
        "ece": last["ece"],
        "epsilon": ledger["epsilon"],
        "noise_removed": bool(ledger.get("noise_removed")),
        "delta": ledger["delta"],
        "noise_multiplier": ledger["noise_multiplier"],
        "seconds": seconds,
        "train_seconds": train_seconds,
        "client_rounds_per_second": trained / train_seconds if train_seconds else None,
        "peak_memory_mb": peak_memory_mb(),
        "bytes_up": sum(row["bytes_up"] for row in state.rows),
        "bytes_down": sum(row["bytes_down"] for row in state.rows),
        **{name: _total(state.rows, name) for name in ("simulated_seconds", "joules", "grams_co2")},
        **_to_target(state.rows, parts.server.plan.target),
        "fleet": parts.server.field.describe(),
        **_online(parts),
        "device": parts.device.type,
        "execution": parts.execution,
        "num_parameters": parts.num_parameters,
        "federated": _federated(last),
        "audit": {key: evidence.get(key) for key in AUDIT_KEYS} if evidence else None,
        "failures": {
            "count": sum(state.failures.values()),
            "clients": len(state.failures),
            "first_reason": state.first_failure,
        },
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "fingerprint": dataset.fingerprint,
            "task": dataset.task,
            "classes": list(dataset.classes),
            "train_rows": len(dataset.train),
            "test_rows": len(dataset.test),
        },
        "versions": versions(),
        "host": host(),
    }


def _total(rows: list[Row], name: str) -> float | None:
    """Null where it is not modelled."""
    return None if rows[0][name] is None else sum(row[name] for row in rows)


def _online(parts: Parts) -> dict[str, Any]:
    """Of a run on streams: its last prequential figures, what came and drifted, and what became of that; null without."""
    online, state = parts.server.online, parts.server.state
    names = ("prequential_accuracy", "prequential_loss", "cumulative_accuracy")
    return {
        **{name: state.rows[-1].get(name) for name in names},
        "streams": None if online is None else online.describe(state.rows),
        "prediction": prediction_of(parts),
    }


def _to_target(rows: list[Row], target: float | None) -> dict[str, float | None]:
    """What it took until the accuracy was evaluated at `target` or above, for the first time; null where it never was."""
    reached = next(
        (r for r in rows if target is not None and r["accuracy"] is not None and r["accuracy"] >= target), None
    )
    until = [] if reached is None else rows[: reached["round"]]
    sums = {name: _total(until, name) if until else None for name in ("simulated_seconds", "joules", "bytes_up")}
    return {
        "rounds_to_target": None if reached is None else reached["round"],
        **{f"{name}_to_target": value for name, value in sums.items()},
    }


def configuration(config: dict[str, Any]) -> dict[str, Any]:
    """What summary.json tells of a run's configuration, resolved and nested: not how it was resumed, and no server's login."""
    return _blotted(config | {key: None for key in ("resume", "resume_rounds") if key in config})


def _blotted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _blotted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_blotted(item) for item in value]
    return without_credentials(value) if isinstance(value, str) else value


def _federated(row: Row) -> dict[str, Any] | None:
    if row["federated_loss"] is None and row["federated_accuracy"] is None:
        return None
    return {
        "accuracy_mean": row["federated_accuracy"],
        "accuracy_std": row["federated_accuracy_std"],
        "accuracy_worst10": row["federated_accuracy_worst10"],
        "accuracy_best10": row["federated_accuracy_best10"],
        "loss_mean": row["federated_loss"],
        "num_clients": row["federated_clients"],
    }


def closing_line(summary: dict[str, Any], path: Path) -> str:
    """What a finished run says on standard output; an audit that refutes the promise first."""
    judged = [f"{name} {summary[name]:.4g}" for name in ("accuracy", "loss") if summary[name] is not None]
    words = [*judged, f"{summary['rounds']} rounds", f"{summary['seconds']:.0f} s"]
    if summary["rounds"] < summary["rounds_asked"]:
        words[-2] += f" of {summary['rounds_asked']}, where its privacy budget or its clients' limits ended it"
    if summary["epsilon"] is not None:
        words.append(f"epsilon {at_most(summary['epsilon'])} at delta {summary['delta']:g}")
    if summary["noise_removed"]:
        words.append("no epsilon: the noise was removed on purpose")
    if audit := summary["audit"]:
        words.insert(0 if audit["verdict"] == "FAIL" else len(words), _audit_words(audit))
    if summary["failures"]["count"]:
        count = summary["failures"]["count"]
        words.append(f"{count} failure{'s' if count > 1 else ''} of clients")
    return f"{summary['experiment']}: {', '.join(words)}; report: {path / 'report.html'}"


def _audit_words(audit: dict[str, Any]) -> str:
    claimed = "infinity" if audit["claimed"] is None else at_most(audit["claimed"])
    observed = "infinity" if audit["observed"] is None else at_least(audit["observed"])
    if audit["verdict"] == "FAIL":
        return f"AUDIT FAILED (claimed at most {claimed}, observed at least {observed}: no guarantee)"
    if audit["verdict"] == "PASS":
        return f"audit passed (claimed at most {claimed}, observed at least {observed})"
    return f"audit {audit['kind']}: see the report"
