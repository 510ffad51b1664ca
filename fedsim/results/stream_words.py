"""What a run on streams says in sentences: what came, what drifted, when that was noticed and how long it took to recover."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.results.finished import Run
from fedsim.results.formats import count_text, known, percent
from fedsim.results.label_words import came_words, label_words
from fedsim.streams.regret import forgetting, judge_alarms, recoveries


def events_of(run: Run) -> list[dict[str, Any]]:
    """The drift's events, in order; none where nothing drifted."""
    return list((run.summary.get("streams") or {}).get("drift") or [])


def recovered(run: Run, event: dict[str, Any]) -> int | None:
    """Rounds until arrivals are judged as well as before the drift, by `fedsim.streams.regret.recoveries`; None if never."""
    found = recoveries(run.rounds.get("round_accuracy", np.full(len(run.rounds["round"]), np.nan)), _begun(run))
    return next(one.rounds for one in found if one.round == event["round"])


def noticed(run: Run, event: dict[str, Any]) -> int | None:
    """Rounds from the beginning of a drift to its first alarm; None where there was none before the next event."""
    drifts = _begun(run)
    return judge_alarms(_alarms(run), drifts, len(run.rounds["round"])).delays[drifts.index(event["round"])]


def _begun(run: Run) -> list[int]:
    """The rounds in which drifts begin, ascending."""
    return sorted({event["round"] for event in events_of(run)})


def _alarms(run: Run) -> list[int]:
    rounds, detected = run.curve("detected")
    return [int(round) for round in rounds[detected > 0]]


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
    if false := judge_alarms(_alarms(run), _begun(run), len(run.rounds["round"])).false:
        said.append(f"{false} alarm{'s' * (false != 1)} came before anything had drifted.")
    old = run.rounds.get("old_concept_accuracy")
    if old is not None and events_of(run) and known(lost := float(forgetting(old[:, None])[-1, 0])) and lost > 0:
        said.append(f"Of the old concept {lost * 100:.1f} points of accuracy were forgotten by the end.")
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
