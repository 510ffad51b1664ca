"""What a run on streams says in sentences: what came, what drifted, when that was noticed and how long it took to recover."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.results.finished import Run
from fedsim.results.formats import count_text, known, percent

BACK = 0.02
"""Accuracy below its mean before a drift at which it counts as recovered."""

BEFORE = 10
"""Rounds before a drift whose mean is what recovery is measured against."""


def events_of(run: Run) -> list[dict[str, Any]]:
    """The drift's events, in order; none where nothing drifted."""
    return list((run.summary.get("streams") or {}).get("drift") or [])


def recovered(run: Run, event: dict[str, Any]) -> int | None:
    """Rounds from the beginning of a drift until a round's arrivals are judged as well as before it, on a mean of three rounds.

    None where they never are, or there is no accuracy before it.
    """
    rounds, accuracy = run.curve("round_accuracy")
    before = accuracy[(rounds >= event["round"] - BEFORE) & (rounds < event["round"])]
    later, values = rounds[rounds >= event["round"]], accuracy[rounds >= event["round"]]
    if not len(before) or len(values) < 3:
        return None
    smooth = np.convolve(values, np.full(3, 1 / 3), mode="valid")
    fallen = np.flatnonzero(smooth < before.mean() - BACK)
    if not len(fallen):
        return 0
    back = np.flatnonzero(smooth[fallen[0] :] >= before.mean() - BACK)
    return int(later[fallen[0] + back[0] + 2] - event["round"]) if len(back) else None


def noticed(run: Run, event: dict[str, Any]) -> int | None:
    """Rounds from the beginning of a drift to the first alarm; None where there was none before the next event."""
    rounds, detected = run.curve("detected")
    nexts = [other["round"] for other in events_of(run) if other["round"] > event["round"]]
    alarms = rounds[(detected > 0) & (rounds >= event["round"]) & (rounds < min(nexts, default=np.inf))]
    return int(alarms[0] - event["round"]) if len(alarms) else None


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
    said = [
        f"{count_text(told['examples_arrived'])} examples came, each judged before it was learnt from; the labels of "
        f"{count_text(told['labels_known'])} came by the end, {count_text(told['labels_late'])} were still to come and "
        f"{count_text(told['labels_missing'])} never do."
    ]
    if told["clients_without_examples"]:
        said.append(f"Nothing ever came to {count_text(told['clients_without_examples'])} clients.")
    if told["clients_exhausted"]:
        said.append(f"The rows of {count_text(told['clients_exhausted'])} clients were used up before the end.")
    said += [_event_words(run, event) for event in events_of(run)]
    rounds, detected = run.curve("detected")
    first = min((event["round"] for event in events_of(run)), default=np.inf)
    if false := int((detected[rounds < first] > 0).sum()):
        said.append(f"{false} alarm{'s' * (false != 1)} came before anything had drifted.")
    return said


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
