"""The report of a run: `write_report(run_dir)` writes report.html, one file that needs no network and no script.

The template lays out, this module gathers what it shows, and `wording` says what the numbers mean.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.paths import whole
from fedsim.results import device_words
from fedsim.results.audit_words import evidence
from fedsim.results.finished import Run, read_run, tenth_of
from fedsim.results.formats import DASH, bytes_text, count_text, duration, known, number_text, percent, tenth_text, text
from fedsim.results.label_words import missing_words
from fedsim.results.loggers import without_credentials
from fedsim.results.movement import movement_rows, movement_words
from fedsim.results.plots import DRAWINGS, write_plots
from fedsim.results.privacy_words import Promise
from fedsim.results.stream_words import compared_rows, prediction_rows, stream_words
from fedsim.results.wording import cohort_of, failures, gains, participation, spread, story

CAPTIONS = {
    "learning_curve": "Accuracy and loss over rounds, on the test rows and on the clients' own held-out rows",
    "stream": "Accuracy on what comes next over rounds, with the drift's beginnings, the alarms and epsilon",
    "stream_clients": "How the accuracy on what comes next spreads over clients",
    "data_drift": "How far each feature, the label and the prediction moved from the first window, with the drift's beginnings",
    "client_accuracy": "How accuracy spreads over clients, and accuracy against how many examples a client holds",
    "client_classes": "Which client holds how much of which class",
    "participation": "How often clients took part, and when they failed",
    "traffic": "Bytes sent over rounds, and what they bought",
    "timeline": "When each device downloaded, trained and uploaded, and where its work was lost",
    "who_took_part": "Participation against data by kind of device, who never could, and why work was lost",
    "cost_curves": "Accuracy against simulated time, bytes and the energy of devices",
    "privacy": "How ε was spent over rounds, what it bought, and how it differs between clients",
    "audit_scores": "How canaries that were in the run and canaries that were not scored in the audit",
    "lira_roc": "How well an attack tells training examples from others, against its false alarms",
    "inversion": "Images of a client beside what was reconstructed from its update",
}


def write_report(run_dir: Path, summary: dict[str, Any] | None = None) -> Path:
    """Write report.html from the run's files and its plots (drawn first where there are none); returns its path.

    summary: see `read_run`. Raises FedsimError where the folder is not a finished run's.
    """
    import jinja2

    run = read_run(run_dir, summary)
    if not (run_dir / "plots").is_dir():
        write_plots(run_dir, summary)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(_view(run))
    path = run_dir / "report.html"
    with whole(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _view(run: Run) -> dict[str, Any]:
    """Everything that the template shows, as text."""
    summary, promise = run.summary, Promise.of(run)
    config, overrides = _hydra_file(run, "config.yaml"), _hydra_file(run, "overrides.yaml")
    return {
        "title": text(summary.get("experiment") or "fedsim run"),
        "subtitle": _subtitle(run),
        "alarm": promise.alarm(),
        "story": " ".join(filter(None, (story(run), device_words.field_story(run)))),
        "headline": _headline(summary, promise),
        "plots": _plots(run),
        "gains": gains(summary),
        "groups": _groups(run),
        "spread": spread(run),
        "participation": participation(run),
        "failures": failures(run),
        "costs": _costs(summary) + device_words.cost_rows(run) + _secure_aggregation(run),
        "field": _field(run),
        "stream": stream_words(run),
        "compared": compared_rows(run),
        "prediction": prediction_rows(run),
        "movement": {"words": movement_words(run), "rows": movement_rows(run)},
        "privacy": promise.section(),
        "evidence": evidence(run.audit),
        "machine": _machine(summary),
        "dataset": _dataset(summary),
        "overrides": overrides.strip() if overrides.strip() not in ("", "[]") else None,
        "config": config.strip() or None,
        "command": without_credentials(str(summary.get("command") or "")),
    }


def _hydra_file(run: Run, name: str) -> str:
    path = run.folder / ".hydra" / name
    return without_credentials(path.read_text(encoding="utf-8")) if path.is_file() else ""


def _plots(run: Run) -> dict[str, dict[str, str]]:
    """The pictures that were drawn, by name: the file as base64, and what it shows for those who do not see it."""
    files = {name: run.folder / "plots" / f"{name}.png" for name in DRAWINGS}
    return {
        name: {"data": base64.b64encode(path.read_bytes()).decode(), "alt": CAPTIONS[name]}
        for name, path in files.items()
        if path.is_file()
    }


def _subtitle(run: Run) -> str:
    summary = run.summary
    cohort, clients = cohort_of(run), count_text(summary.get("num_clients"))
    parts = [text(summary.get(key)) for key in ("strategy", "model")]
    parts.append(text((summary.get("dataset") or {}).get("name")))
    parts.append(f"{text(summary.get('partition'))} partition, {cohort} of {clients} clients a round")
    if compression := device_words.compression_of(summary):
        parts.append(f"{compression} compression")
    return " · ".join([*parts, f"seed {text(summary.get('seed'))}"])


def _field(run: Run) -> dict[str, Any]:
    """What is told of the devices in the field; empty lists where none were modelled."""
    kinds = device_words.by_kind(run)
    return {"words": device_words.field_words(run), "kinds": kinds, "columns": device_words.KIND_COLUMNS}


def _headline(summary: dict[str, Any], promise: Promise) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the figures that a reader looks for first."""
    regression = (summary.get("dataset") or {}).get("task") == "regression"
    best = f"at round {count_text(summary.get('best_round'))}" if known(summary.get("best_round")) else ""
    labels = [
        ("Accuracy", percent(summary.get("accuracy")), "last evaluation, test rows"),
        ("Best accuracy", percent(summary.get("best_accuracy")), best),
        ("Macro F1", percent(summary.get("macro_f1")), "mean over classes"),
        ("Calibration error", percent(summary.get("ece")), "expected (ECE)"),
    ]
    return [
        *([] if regression else labels),
        ("Loss", number_text(summary.get("loss")), "last evaluation, test rows"),
        ("Privacy ε", *promise.tile()),
        ("Time", duration(summary.get("seconds")), f"on {text(summary.get('device'))}"),
        *device_words.tile(summary),
        ("Traffic", _traffic(summary), "up and down, all clients"),
    ]


def _traffic(summary: dict[str, Any]) -> str:
    up, down = summary.get("bytes_up"), summary.get("bytes_down")
    return bytes_text(up + down) if known(up) and known(down) else DASH


def _groups(run: Run) -> list[tuple[str, ...]]:
    """A row for the worst tenth, the middle, and the best tenth of clients by accuracy on their own held-out rows."""
    accuracy = run.client("accuracy")
    order = np.argsort(accuracy, kind="stable")[: np.isfinite(accuracy).sum()]  # NaN sorts last
    if len(order) <= 10:
        return []
    tenth = tenth_of(len(order))
    groups = {"Worst tenth": order[:tenth], "Middle": order[tenth:-tenth], "Best tenth": order[-tenth:]}
    columns = [run.client(name) for name in ("num_examples", "participations")]
    return [
        (
            name,
            count_text(len(who)),
            percent(accuracy[who].mean()),
            *(tenth_text(_mean(column[who])) for column in columns),
        )
        for name, who in groups.items()
    ]


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _costs(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rounds, seconds = summary.get("rounds"), summary.get("seconds")
    each = duration(seconds / rounds) if known(seconds) and known(rounds) and rounds else DASH
    memory = summary.get("peak_memory_mb")
    return [
        ("Time, whole run", duration(seconds)),
        ("Time, a round", each),
        ("Time, training alone", duration(summary.get("train_seconds"))),
        ("Client-rounds a second, training alone", number_text(summary.get("client_rounds_per_second"))),
        ("Sent up, devices to server", bytes_text(summary.get("bytes_up"))),
        ("Sent down, server to devices", bytes_text(summary.get("bytes_down"))),
        ("Trained by", _trained_by(summary)),
        ("Peak memory", bytes_text(memory * 1e6) if known(memory) else DASH),
        ("Parameters of the model", count_text(summary.get("num_parameters"))),
    ]


def _trained_by(summary: dict[str, Any]) -> str:
    """Where and how devices ran, in words."""
    if not (grid := summary.get("grid")):
        return DASH
    workers, execution = summary.get("workers", 1), summary.get("execution", {})
    where = f"grid={grid}" + (f", {count_text(workers)} workers" if workers != 1 else "")
    return f"{where}; {execution.get('why') or execution.get('way', DASH)}"


def _secure_aggregation(run: Run) -> list[tuple[str, str]]:
    """What secure aggregation cost beside the updates, over all rounds; nothing where there was none."""
    rows = []
    for name, key, show in (
        ("Secure aggregation, time", "seconds", duration),
        ("Secure aggregation, sent up", "bytes_up", bytes_text),
        ("Secure aggregation, sent down", "bytes_down", bytes_text),
    ):
        values = run.curve(f"secure_aggregation_{key}")[1]
        if len(values) and values.sum():
            rows.append((name, show(float(values.sum()))))
    return rows


def _machine(summary: dict[str, Any]) -> list[tuple[str, str]]:
    host = summary.get("host") or {}
    memory = host.get("memory_gb")
    rows = [
        ("Device", text(summary.get("device"))),
        ("Processor", text(host.get("cpu"))),
        ("Cores", count_text(host.get("cores"))),
        ("Memory", f"{memory:.3g} GB" if known(memory) else DASH),
        ("System", text(host.get("system"))),
    ]
    return rows + [(str(name), text(version)) for name, version in (summary.get("versions") or {}).items()]


def _dataset(summary: dict[str, Any]) -> list[tuple[str, str]]:
    data = summary.get("dataset") or {}
    return [
        ("Name", text(data.get("name"))),
        ("Read from", text(data.get("source"))),
        ("Task", text(data.get("task"))),
        ("Classes", count_text(len(data["classes"])) if data.get("classes") else DASH),
        ("Training rows", count_text(data.get("train_rows"))),
        ("Test rows", count_text(data.get("test_rows"))),
        ("Partition", text(summary.get("partition"))),
        *([("Missing", missing)] if (missing := missing_words(summary)) else []),
        ("Fingerprint (SHA-256)", text(data.get("fingerprint"))),
    ]
