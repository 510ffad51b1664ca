"""What a run on streams says in sentences: what came, what drifted, when that was noticed and how long it took to recover."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.results.finished import Run, tenths
from fedsim.results.formats import DASH, bytes_text, count_text, known, number_text, percent, tenth_names
from fedsim.results.label_words import came_words, label_words
from fedsim.results.units import energy_text, time_text
from fedsim.streams.verdict import Verdict, verdict


def events_of(run: Run) -> list[dict[str, Any]]:
    """The drift's events, in order; none where nothing drifted."""
    return list((run.summary.get("streams") or {}).get("drift") or [])


def recovered(run: Run, event: dict[str, Any]) -> int | None:
    """Rounds until arrivals are judged as well as before the drift, by `fedsim.streams.regret.recoveries`; None if never."""
    return next(one.rounds for one in _verdict(run).recoveries if one.round == event["round"])


def noticed(run: Run, event: dict[str, Any]) -> int | None:
    """Rounds from the beginning of a drift to its first alarm; None where there was none before the next event."""
    found = _verdict(run)
    return found.delays[found.drifts.index(event["round"])]


def _verdict(run: Run) -> Verdict:
    return verdict(run.rounds, events_of(run))


def stream_title(run: Run) -> str:
    """The picture's finding in a line."""
    events = events_of(run)
    accuracy = run.curve("prequential_accuracy")[1]
    if not events:
        end = (
            f"{percent(float(accuracy[-1]))} of what comes next is right"
            if len(accuracy)
            else "the loss on what comes next"
        )
        return f"After {count_text(run.summary.get('rounds'))} rounds of a stream without drift, {end}"
    first = events[0]
    words = [f"{first['kind'].replace('_', ' ')} at round {first['round']}"]
    delay, back = noticed(run, first), recovered(run, first)
    if len(run.curve("detected")[0]) and known(delay):
        words.append("noticed in the same round" if delay == 0 else f"noticed {delay} round{'s' * (delay != 1)} later")
    words.append(
        "never recovered from" if back is None else f"recovered from after {back} rounds" if back else "without a dip"
    )
    return f"Drift: {', '.join(words)}"


def stream_words(run: Run) -> list[str]:
    """Sentences of the report's section; none where there was no stream."""
    told = run.summary.get("streams")
    if not told:
        return []
    said = [came_words(told), *label_words(told)]
    if told["clients_without_examples"]:
        said.append(f"Nothing ever came to {count_text(told['clients_without_examples'])} clients.")
    if told["clients_exhausted"]:
        said.append(f"The rows of {count_text(told['clients_exhausted'])} clients were used up before the end.")
    if len(spent := run.curve("clients_spent")[1]) and spent.any():
        said.append(
            f"In {count_text(spent.sum())} rounds of a client it held examples that its promise let it train on no more; at the "
            f"end {count_text(run.privacy.get('clients_spent'))} clients had left for that."
        )
    said += [_event_words(run, event) for event in events_of(run)]
    found = _verdict(run)
    if false := found.false_alarms:
        said.append(f"{false} alarm{'s' * (false != 1)} came before anything had drifted.")
    if events_of(run) and found.forgetting is not None and found.forgetting > 0:
        said.append(
            f"Of the concept that was there before {found.forgetting * 100:.1f} points of accuracy were forgotten by the end: its "
            "best accuracy on test rows less that of the last model (Chaudhry et al. 2018, arXiv 1801.10112)."
        )
    return said + _client_words(run) + _regret_words(run)


def _client_words(run: Run) -> list[str]:
    """How what came to the single clients was judged; nothing where that is of fewer than two."""
    accuracy = run.client("prequential_accuracy")
    accuracy = accuracy[np.isfinite(accuracy)]
    if len(accuracy) < 2:
        return []
    worst, best = (percent(one) for one in tenths(accuracy))
    low, high = tenth_names(len(accuracy))
    return [
        f"Of what came to each client itself (fading) {percent(float(np.median(accuracy)))} was right at the median of "
        f"{count_text(len(accuracy))} clients, {worst} at {low} and {best} at {high}."
    ]


COMPARED = {
    "fixed": "The best fixed model in hindsight",
    "offline": "A model trained anew, in one place, on all so far",
}
"""What `evaluation.regret` may hold a run against."""


FIXED = {"start": "the first", "last": "the second", "all": "the third"}
"""The fixed models of `fedsim.comparators`, as the report lists them."""


def _regret_words(run: Run) -> list[str]:
    """How to read the table of what the run is held against."""
    said = []
    if len(run.curve("regret_fixed")[0]):
        best = (run.summary.get("streams") or {}).get("best_fixed")
        said.append(
            "Regret is the sum of the run's losses on what came next less that of another model's. Of three fixed models, the "
            "one that the run began with, the one that it ended with, and one trained in one place on all that came, "
            f"{FIXED.get(str(best), DASH)} lost least over all rounds. Another may be better still, so the regret against all "
            "fixed models is at least as large."
        )
    if len(run.curve("regret_offline")[0]):
        every = _evaluation(run).get("regret_every")
        said.append(
            "The offline model is trained from the start on all that was labelled by then, after round 1 and every "
            f"{text_of(every)} rounds, and judged on what comes until the next; a negative regret says that learning online was "
            "better."
        )
    return said


def text_of(value: Any) -> str:
    """A number, or a dash."""
    return count_text(value) if known(value) else DASH


def _evaluation(run: Run) -> dict[str, Any]:
    return dict((run.summary.get("config") or {}).get("evaluation") or {})


WAYS = {
    "online": "On the device, as each comes",
    "device_batch": "On the device, once a round",
    "server_batch": "Sent to the server, once a round",
}
"""Of predicting, as `fedsim.fleet.prediction` has them."""


def prediction_rows(run: Run) -> list[tuple[str, ...]]:
    """A row a way of predicting what came: name, time from arrival to answer, energy, bytes; none where no fleet is modelled."""
    told = run.summary.get("prediction") or {}
    return [
        (words, time_text(told[way]["seconds"]), energy_text(told[way]["joules"]), bytes_text(told[way]["bytes"]))
        for way, words in WAYS.items()
        if way in told
    ]


def compared_rows(run: Run) -> list[tuple[str, ...]]:
    """A row for this run and for each that it is held against: name, last accuracy and loss (fading), regret, that an example."""
    rows: list[tuple[str, ...]] = []
    examples = float(np.nansum(run.curve("arrived")[1]))
    for name, words in {"prequential": "This run", **COMPARED}.items():
        loss, regret = run.curve(f"{name}_loss")[1], run.curve(f"regret_{name}")[1]
        if name != "prequential" and not len(regret):
            continue
        accuracy = run.curve(f"{name}_accuracy")[1]
        each = number_text(float(regret[-1]) / examples) if len(regret) and examples else DASH
        rows.append(
            (
                words,
                percent(float(accuracy[-1])) if len(accuracy) else DASH,
                number_text(float(loss[-1])) if len(loss) else DASH,
                number_text(float(regret[-1])) if len(regret) else DASH,
                each,
            )
        )
    return rows if len(rows) > 1 else []


def _event_words(run: Run, event: dict[str, Any]) -> str:
    delay, back = noticed(run, event), recovered(run, event)
    alarm = "no alarm followed" if delay is None else f"the alarm came after {delay} round{'s' * (delay != 1)}"
    end = "accuracy had not recovered by the end" if back is None else f"accuracy was back after {back} rounds"
    what = event["kind"].replace("_", " ")
    span = (
        f"at round {event['round']}"
        if event["until"] == event["round"]
        else f"over rounds {event['round']} to {event['until']}"
    )
    return f"Drift ({what}, towards the {event['towards']} concept, {event['clients']} clients) {span}: {alarm}; {end}."
