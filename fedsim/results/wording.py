"""What the numbers of a run mean, in sentences: each claims what was measured and no more. Of privacy: `privacy_words`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.results.finished import Run, tenths
from fedsim.results.formats import count_text, known, number_text, percent, tenth_names, tenth_text, text
from fedsim.results.privacy_words import Promise


def story(run: Run) -> str:
    """One sentence of what happened, with the caveat that matters most."""
    s = run.summary
    data = s.get("dataset") or {}
    rounds, clients = (count_text(s.get(key)) for key in ("rounds", "num_clients"))
    what = f"{text(s.get('strategy'))} trained {text(s.get('model'))} on {text(data.get('name'))}{Promise.of(run).clause()}"
    start = f"In {rounds} round{'' if s.get('rounds') == 1 else 's'} of {cohort_of(run)} out of {clients} clients, {what} to "
    rows = f"{count_text(data.get('test_rows'))} test rows" if known(data.get("test_rows")) else "test rows"
    if known(s.get("accuracy")):
        return f"{start}{percent(s['accuracy'])} accuracy on {rows} that no client trained on{_caveat(run)}."
    if known(s.get("loss")):
        return f"{start}a loss of {number_text(s['loss'])} on {rows} that no client trained on{_loss_caveat(run)}."
    return f"{start}a model whose last loss is not a finite number or was never measured, so nothing can be said of it."


def cohort_of(run: Run) -> str:
    """How many clients took part in a round: where that differs from round to round, about the mean."""
    sizes = run.rounds.get("cohort_size", np.zeros(0))
    sizes = sizes[np.isfinite(sizes)]
    if len(sizes) == 0 or sizes.min() == sizes.max():
        return count_text(run.summary.get("cohort_size"))
    return f"about {sizes.mean():,.0f}" if sizes.mean() >= 10 else f"about {sizes.mean():.2g}"


def _caveat(run: Run) -> str:
    """The gravest caveat to the last accuracy, as a clause, or nothing."""
    s, federated = run.summary, run.summary.get("federated") or {}
    accuracy = s["accuracy"]
    counts = run.class_counts
    guess = counts.sum(0).max() / counts.sum() if counts is not None and counts.sum() else None
    if guess is not None and accuracy <= guess + 0.01:
        return f", which is no better than always answering the clients' most common class ({percent(guess)} of theirs)"
    if not known(s.get("loss")):
        return ", though its loss is not a finite number"
    if known(s.get("best_accuracy")) and s["best_accuracy"] - accuracy >= 0.01:
        behind = 100 * (s["best_accuracy"] - accuracy)
        return f", {behind:.1f} points below the best it had reached ({percent(s['best_accuracy'])}, {_best_at(s)})"
    worst, mean = federated.get("accuracy_worst10"), federated.get("accuracy_mean")
    if known(worst) and known(mean) and mean - worst >= 0.1:
        worst_name, _ = tenth_names(federated.get("num_clients") or len(run.users))
        return f", but {worst_name} has {percent(worst)} on its own data (the clients' mean is {percent(mean)})"
    _, values = run.curve("accuracy")
    if len(values) >= 10 and values[-3:].mean() - values[-6:-3].mean() >= 0.01:
        return ", and it was still rising when the run ended"
    return ""


def _best_at(summary: dict[str, Any]) -> str:
    return f"round {count_text(summary.get('best_round'))}"


def _loss_caveat(run: Run) -> str:
    rounds, values = run.curve("loss")
    if len(values) and values[-1] > values.min() * 1.05:
        return f", above the lowest it had reached ({number_text(values.min())}, round {rounds[values.argmin()]:.0f})"
    return ""


def gains(summary: dict[str, Any]) -> dict[str, Any] | None:
    """What federation gained over devices alone and cost against pooled data; None where no baseline was run.

    Like is compared with like: a measure is a row only if the federated run and a baseline both have it.
    """
    baselines = summary.get("baselines") or {}
    alone, central = baselines.get("local_only") or {}, baselines.get("central") or {}
    own = summary.get("federated") or {}
    measures = [
        ("Accuracy, test rows", "accuracy", summary.get("accuracy"), percent),
        ("Accuracy, clients' own rows, mean", "accuracy_mean", own.get("accuracy_mean"), percent),
        ("Accuracy, clients' own rows, worst tenth", "accuracy_worst10", own.get("accuracy_worst10"), percent),
        ("Loss, test rows", "loss", summary.get("loss"), number_text),
    ]
    rows = [
        (name, show(alone.get(key)), show(mine), show(central.get(key)))
        for name, key, mine, show in measures
        if known(mine) and (known(alone.get(key)) or known(central.get(key)))
    ]
    if not rows:
        return None
    # told of the first measure that says what was gained, or else of the first that says what it cost
    told = [
        (key, mine) for base in (alone, central) for _, key, mine, _ in measures if known(mine) and known(base.get(key))
    ]
    key, mine = told[0]
    return {"rows": rows, "words": _gain_words(key, mine, alone.get(key), central.get(key))}


def _gain_words(key: str, mine: Any, alone: Any, central: Any) -> str:
    unit, scale, sign = ("", 1.0, -1) if key == "loss" else (" points of accuracy", 100.0, 1)
    show = number_text if key == "loss" else tenth_text
    of = " of loss" if key == "loss" else ""
    words = []
    if known(mine) and known(alone):
        gain = sign * scale * (mine - alone)
        verb = "gained" if gain >= 0 else "lost"
        words.append(f"federation {verb} {show(abs(gain))}{unit}{of} against devices that train alone")
    if known(mine) and known(central):
        cost = sign * scale * (central - mine)
        verb = "cost" if cost >= 0 else "gained"
        words.append(f"{verb} {show(abs(cost))}{unit}{of} against having all data in one place")
    if len(words) == 1 and not words[0].startswith("federation"):
        words = [f"federation {words[0]}"]
    sentence = " and ".join(words)
    return f"{sentence[:1].upper()}{sentence[1:]}." if words else ""


def spread(run: Run) -> str | None:
    """One sentence on how unequal clients fare, from summary.json, else from the clients' own rows."""
    own = run.summary.get("federated") or {}
    accuracy = run.client("accuracy")
    accuracy = accuracy[np.isfinite(accuracy)]
    mean, deviation, worst, best = (own.get(f"accuracy_{name}") for name in ("mean", "std", "worst10", "best10"))
    if not own and len(accuracy):
        mean, deviation, (worst, best) = float(accuracy.mean()), float(accuracy.std()), tenths(accuracy)
    if not known(mean):
        return _loss_spread(run)
    count = own.get("num_clients") or len(accuracy)
    worst_name, best_name = tenth_names(count)
    return (
        f"On their own held-out rows {count_text(count)} clients average {percent(mean)} accuracy (standard deviation "
        f"{percent(deviation)}); {worst_name} has {percent(worst)}, {best_name} {percent(best)}."
    )


def _loss_spread(run: Run) -> str | None:
    loss = run.client("loss")
    loss = loss[np.isfinite(loss)]
    if len(loss) == 0:
        return None
    mean, (low, high) = float(loss.mean()), tenths(loss)
    worst_name, best_name = tenth_names(len(loss))
    return (
        f"On their own held-out rows {count_text(len(loss))} clients average a loss of {number_text(mean)}; "
        f"{worst_name} has {number_text(high)}, {best_name} {number_text(low)}."
    )


def participation(run: Run) -> str | None:
    """Who took part, as a sentence; None where the run did not count it."""
    times = run.client("participations")
    times = times[np.isfinite(times)]
    if len(times) == 0:
        return None
    rounds = len(run.rounds["round"])
    if times.min() == times.max():
        how_often = "every round" if times[0] == rounds else f"{times[0]:,.0f} of {rounds:,} rounds"
        return f"Each of the {len(times):,} clients took part in {how_often}."
    took = f"{(times > 0).sum():,} of {len(times):,} clients took part"
    return f"{took}, in {times.mean():.3g} of {rounds:,} rounds on average."


def failures(run: Run) -> dict[str, str | None]:
    """How many trainings failed, as a sentence, and the first reason given."""
    failed = run.summary.get("failures") or {}
    count = failed.get("count")
    if not known(count):
        return {"words": "Failures were not counted in this run.", "reason": None}
    if count == 0:
        return {"words": "No client failed.", "reason": None}
    asked = np.nansum(run.rounds.get("cohort_size", np.array([np.nan])))
    share = f" of {asked:,.0f} client-rounds ({percent(count / asked)})" if asked else ""
    clients = failed.get("clients")
    who = f", on {count_text(clients)} client{'s' if clients != 1 else ''}" if known(clients) else ""
    return {
        "words": f"{count_text(count)}{share} failed{who}; what they trained is not in the model.",
        "reason": text(failed.get("first_reason")),
    }
