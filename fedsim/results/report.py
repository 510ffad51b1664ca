"""The report of a run: `write_report(run_dir)` writes report.html, one file that needs no network and no script.

The template lays out; this module says what the numbers mean. A number that a run does not have shows as a dash.
"""

from __future__ import annotations

import base64
import math
import os
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from fedsim.results.loggers import without_credentials
from fedsim.results.plots import DRAWINGS, Run, bytes_text, percent, read_run, tenths, write_plots

DASH = "\N{EN DASH}"
CAPTIONS = {
    "learning_curve": "Accuracy and loss over rounds, on the test rows and on the clients' own held-out rows",
    "client_accuracy": "How accuracy spreads over clients, and accuracy against how many examples a client holds",
    "client_classes": "Which client holds how much of which class",
    "participation": "How often clients took part, and when they failed",
    "traffic": "Bytes sent over rounds, and what they bought",
}
NO_PRIVACY = "No privacy mechanism: the server sees each client's update."


def write_report(run_dir: Path) -> Path:
    """Write report.html from the run's files and its plots (drawn first where there are none); returns its path.

    Raises FedsimError where the folder is not a finished run's.
    """
    import jinja2

    run = read_run(run_dir)
    if not (run_dir / "plots").is_dir():
        write_plots(run_dir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(_view(run))
    path = run_dir / "report.html"
    part = path.with_suffix(".part")
    part.write_text(html, encoding="utf-8")
    os.replace(part, path)
    return path


def _view(run: Run) -> dict[str, Any]:
    """Everything that the template shows, as text."""
    summary = run.summary
    config, overrides = _hydra_file(run, "config.yaml"), _hydra_file(run, "overrides.yaml")
    return {
        "title": _text(summary.get("experiment") or "fedsim run"),
        "subtitle": _subtitle(summary),
        "story": story(run),
        "headline": _headline(summary),
        "plots": _plots(run),
        "gains": gains(summary),
        "groups": _groups(run),
        "spread": _spread(run),
        "failures": failures(run),
        "costs": _costs(summary),
        "privacy": privacy(summary, config),
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


def _known(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    return DASH if value is None or value == "" else str(value)


def _percent(value: Any) -> str:
    return percent(value) if _known(value) else DASH


def _count(value: Any) -> str:
    return f"{value:,.0f}" if _known(value) else DASH


def _number(value: Any) -> str:
    return f"{value:.4g}" if _known(value) else DASH


def _tenth(value: Any) -> str:
    return f"{value:,.1f}" if _known(value) else DASH


def _bytes(value: Any) -> str:
    return bytes_text(value) if _known(value) else DASH


def duration(seconds: Any) -> str:
    """192 as `3 min 12 s`; a dash where there is no number."""
    if not _known(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _subtitle(summary: dict[str, Any]) -> str:
    cohort, clients = _count(summary.get("cohort_size")), _count(summary.get("num_clients"))
    parts = [_text(summary.get(key)) for key in ("strategy", "model")]
    parts.append(_text((summary.get("dataset") or {}).get("name")))
    parts.append(f"{_text(summary.get('partition'))} partition, {cohort} of {clients} clients a round")
    return " · ".join([*parts, f"seed {_text(summary.get('seed'))}"])


def _headline(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the figures that a reader looks for first."""
    regression = (summary.get("dataset") or {}).get("task") == "regression"
    best = f"at round {_count(summary.get('best_round'))}" if _known(summary.get("best_round")) else ""
    delta = f"δ = {_number(summary['delta'])}" if _known(summary.get("delta")) else "no guarantee"
    labels = [
        ("Accuracy", _percent(summary.get("accuracy")), "last evaluation, test rows"),
        ("Best accuracy", _percent(summary.get("best_accuracy")), best),
        ("Macro F1", _percent(summary.get("macro_f1")), "mean over classes"),
        ("Calibration error", _percent(summary.get("ece")), "expected (ECE)"),
    ]
    return [
        *([] if regression else labels),
        ("Loss", _number(summary.get("loss")), "last evaluation, test rows"),
        ("Privacy ε", _number(summary.get("epsilon")), delta),
        ("Time", duration(summary.get("seconds")), f"on {_text(summary.get('device'))}"),
        ("Traffic", _traffic(summary), "up and down, all clients"),
    ]


def _traffic(summary: dict[str, Any]) -> str:
    up, down = summary.get("bytes_up"), summary.get("bytes_down")
    return bytes_text(up + down) if _known(up) and _known(down) else DASH


def story(run: Run) -> str:
    """One sentence of what happened, with the caveat that matters most."""
    s = run.summary
    data = s.get("dataset") or {}
    start = (
        f"In {_count(s.get('rounds'))} rounds of {_count(s.get('cohort_size'))} out of {_count(s.get('num_clients'))} "
        f"clients, {_text(s.get('strategy'))} trained {_text(s.get('model'))} on {_text(data.get('name'))} to "
    )
    rows = f"{_count(data.get('test_rows'))} test rows" if _known(data.get("test_rows")) else "test rows"
    if _known(s.get("accuracy")):
        return f"{start}{percent(s['accuracy'])} accuracy on {rows} that no client trained on{_caveat(run)}."
    if _known(s.get("loss")):
        return f"{start}a loss of {_number(s['loss'])} on {rows} that no client trained on{_loss_caveat(run)}."
    return f"{start}a model whose last loss is not a finite number or was never measured, so nothing can be said of it."


def _caveat(run: Run) -> str:
    """The gravest caveat to the last accuracy, as a clause, or nothing."""
    s, federated = run.summary, run.summary.get("federated") or {}
    accuracy = s["accuracy"]
    counts = run.class_counts
    guess = counts.sum(0).max() / counts.sum() if counts is not None and counts.sum() else None
    if guess is not None and accuracy <= guess + 0.01:
        return f", which is no better than always answering the clients' most common class ({percent(guess)} of theirs)"
    if not _known(s.get("loss")):
        return ", though its loss is not a finite number"
    if _known(s.get("best_accuracy")) and s["best_accuracy"] - accuracy >= 0.01:
        behind = 100 * (s["best_accuracy"] - accuracy)
        return f", {behind:.1f} points below the best it had reached ({_percent(s['best_accuracy'])}, {_best_at(s)})"
    worst, mean = federated.get("accuracy_worst10"), federated.get("accuracy_mean")
    if _known(worst) and _known(mean) and mean - worst >= 0.1:
        return f", but the worst-served tenth of clients get {percent(worst)} on their own data (mean {percent(mean)})"
    _, values = run.curve("accuracy")
    if len(values) >= 10 and values[-3:].mean() - values[-6:-3].mean() >= 0.01:
        return ", and it was still rising when the run ended"
    return ""


def _best_at(summary: dict[str, Any]) -> str:
    return f"round {_count(summary.get('best_round'))}"


def _loss_caveat(run: Run) -> str:
    rounds, values = run.curve("loss")
    if len(values) and values[-1] > values.min() * 1.05:
        return f", above the lowest it had reached ({_number(values.min())}, round {rounds[values.argmin()]:.0f})"
    return ""


def gains(summary: dict[str, Any]) -> dict[str, Any] | None:
    """What federation gained over devices alone and cost against pooled data; None where no baseline was run.

    Like is compared with like: a measure is a row only if the federated run and a baseline both have it.
    """
    baselines = summary.get("baselines") or {}
    alone, central = baselines.get("local_only") or {}, baselines.get("central") or {}
    own = summary.get("federated") or {}
    measures = [
        ("Accuracy, test rows", "accuracy", summary.get("accuracy"), _percent),
        ("Accuracy, clients' own rows, mean", "accuracy_mean", own.get("accuracy_mean"), _percent),
        ("Accuracy, clients' own rows, worst tenth", "accuracy_worst10", own.get("accuracy_worst10"), _percent),
        ("Loss, test rows", "loss", summary.get("loss"), _number),
    ]
    rows = [
        (name, show(alone.get(key)), show(mine), show(central.get(key)))
        for name, key, mine, show in measures
        if _known(mine) and (_known(alone.get(key)) or _known(central.get(key)))
    ]
    if not rows:
        return None
    # told of the first measure that says what was gained, or else of the first that says what it cost
    told = [
        (key, mine)
        for base in (alone, central)
        for _, key, mine, _ in measures
        if _known(mine) and _known(base.get(key))
    ]
    key, mine = told[0]
    return {"rows": rows, "words": _gain_words(key, mine, alone.get(key), central.get(key))}


def _gain_words(key: str, mine: Any, alone: Any, central: Any) -> str:
    unit, scale, sign = ("", 1.0, -1) if key == "loss" else (" points of accuracy", 100.0, 1)
    show = _number if key == "loss" else _tenth
    of = " of loss" if key == "loss" else ""
    words = []
    if _known(mine) and _known(alone):
        gain = sign * scale * (mine - alone)
        verb = "gained" if gain >= 0 else "lost"
        words.append(f"federation {verb} {show(abs(gain))}{unit}{of} against devices that train alone")
    if _known(mine) and _known(central):
        cost = sign * scale * (central - mine)
        verb = "cost" if cost >= 0 else "gained"
        words.append(f"{verb} {show(abs(cost))}{unit}{of} against having all data in one place")
    if len(words) == 1 and not words[0].startswith("federation"):
        words = [f"federation {words[0]}"]
    sentence = " and ".join(words)
    return f"{sentence[:1].upper()}{sentence[1:]}." if words else ""


def _groups(run: Run) -> list[tuple[str, ...]]:
    """A row for the worst tenth, the middle, and the best tenth of clients by accuracy on their own held-out rows."""
    accuracy = run.client("accuracy")
    order = np.argsort(accuracy, kind="stable")[: np.isfinite(accuracy).sum()]  # NaN sorts last
    if len(order) < 10:
        return []
    tenth = max(1, round(len(order) / 10))
    groups = {"Worst tenth": order[:tenth], "Middle": order[tenth:-tenth], "Best tenth": order[-tenth:]}
    columns = [(run.client(name), show) for name, show in (("num_examples", _tenth), ("participations", _tenth))]
    return [
        (
            name,
            _count(len(who)),
            _percent(accuracy[who].mean()),
            *(show(_mean(column[who])) for column, show in columns),
        )
        for name, who in groups.items()
    ]


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _spread(run: Run) -> str | None:
    """One sentence on how unequal clients fare, from summary.json, else from the clients' own rows."""
    own = run.summary.get("federated") or {}
    accuracy = run.client("accuracy")
    accuracy = accuracy[np.isfinite(accuracy)]
    mean, deviation, worst, best = (own.get(f"accuracy_{name}") for name in ("mean", "std", "worst10", "best10"))
    if not own and len(accuracy):
        mean, deviation, (worst, best) = float(accuracy.mean()), float(accuracy.std()), tenths(accuracy)
    if not _known(mean):
        return None
    count = _count(own.get("num_clients") or len(accuracy))
    return (
        f"On their own held-out rows {count} clients average {_percent(mean)} (standard deviation {_percent(deviation)}"
        f"); the worst tenth average {_percent(worst)}, the best tenth {_percent(best)}."
    )


def failures(run: Run) -> dict[str, str | None]:
    """How many trainings failed, as a sentence, and the first reason given."""
    failed = run.summary.get("failures") or {}
    count = failed.get("count")
    if not _known(count):
        return {"words": "Failures were not counted in this run.", "reason": None}
    if count == 0:
        return {"words": "No client failed.", "reason": None}
    asked = np.nansum(run.rounds.get("cohort_size", np.array([np.nan])))
    share = f" of {asked:,.0f} client-rounds ({percent(count / asked)})" if asked else ""
    clients = failed.get("clients")
    who = f", on {_count(clients)} client{'s' if clients != 1 else ''}" if _known(clients) else ""
    return {
        "words": f"{_count(count)}{share} failed{who}; what they trained is not in the model.",
        "reason": _text(failed.get("first_reason")),
    }


def _costs(summary: dict[str, Any]) -> list[tuple[str, str]]:
    rounds, seconds = summary.get("rounds"), summary.get("seconds")
    each = duration(seconds / rounds) if _known(seconds) and _known(rounds) and rounds else DASH
    memory = summary.get("peak_memory_mb")
    return [
        ("Time, whole run", duration(seconds)),
        ("Time, a round", each),
        ("Client-rounds a second", _number(summary.get("client_rounds_per_second"))),
        ("Sent up, devices to server", _bytes(summary.get("bytes_up"))),
        ("Sent down, server to devices", _bytes(summary.get("bytes_down"))),
        ("Peak memory", bytes_text(memory * 1e6) if _known(memory) else DASH),
        ("Parameters of the model", _count(summary.get("num_parameters"))),
    ]


def privacy(summary: dict[str, Any], config: str) -> dict[str, Any]:
    """What may be claimed: a guarantee only where an epsilon was accounted, and never more than that."""
    epsilon, delta, noise = (summary.get(name) for name in ("epsilon", "delta", "noise_multiplier"))
    rows = [("ε", _number(epsilon)), ("δ", _number(delta)), ("Noise multiplier", _number(noise))]
    if _known(epsilon):
        words = f"The model is differentially private with ε = {_number(epsilon)} at δ = {_number(delta)}"
        unit = _privacy_setting(config, "unit")
        return {"words": f"{words}, for one {unit}." if unit else f"{words}.", "rows": rows}
    if _known(noise) or _has_mechanism(config):
        return {
            "words": "A privacy mechanism was configured but no ε was accounted, so no guarantee is claimed.",
            "rows": rows,
        }
    return {"words": NO_PRIVACY, "rows": []}


def _privacy_config(config: str) -> Any:
    import yaml

    try:
        whole = yaml.safe_load(config)
    except yaml.YAMLError:
        return None
    return whole.get("privacy") if isinstance(whole, dict) else None


def _privacy_setting(config: str, key: str) -> str | None:
    part = _privacy_config(config)
    value = part.get(key) if isinstance(part, dict) else None
    return str(value) if value else None


def _has_mechanism(config: str) -> bool:
    """Whether the configuration asks for privacy: anything but null, `none`, or a part whose class is No-something."""
    part = _privacy_config(config)
    if isinstance(part, dict):
        name = next((part[key] for key in ("_target_", "unit", "name", "kind") if part.get(key)), None)
    else:
        name = part
    return name is not None and not str(name).rsplit(".", 1)[-1].lower().startswith("no")


def _machine(summary: dict[str, Any]) -> list[tuple[str, str]]:
    host = summary.get("host") or {}
    memory = host.get("memory_gb")
    rows = [
        ("Device", _text(summary.get("device"))),
        ("Processor", _text(host.get("cpu"))),
        ("Cores", _count(host.get("cores"))),
        ("Memory", f"{memory:.3g} GB" if _known(memory) else DASH),
        ("System", _text(host.get("system"))),
    ]
    return rows + [(str(name), _text(version)) for name, version in (summary.get("versions") or {}).items()]


def _dataset(summary: dict[str, Any]) -> list[tuple[str, str]]:
    data = summary.get("dataset") or {}
    return [
        ("Name", _text(data.get("name"))),
        ("Read from", _text(data.get("source"))),
        ("Task", _text(data.get("task"))),
        ("Classes", _count(len(data["classes"])) if data.get("classes") else DASH),
        ("Training rows", _count(data.get("train_rows"))),
        ("Test rows", _count(data.get("test_rows"))),
        ("Partition", _text(summary.get("partition"))),
        ("Fingerprint (SHA-256)", _text(data.get("fingerprint"))),
    ]
