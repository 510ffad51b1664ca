"""What became of a stream: counted for the summary of a run, and said beforehand where it is no help."""

from __future__ import annotations

import numpy as np

from fedsim.streams.quality import Quality
from fedsim.streams.stream import Stream


def describe(stream: Stream, rounds: int) -> dict[str, int]:
    """Counts after `rounds` rounds, for `summary.json`.

    examples_arrived; labels_known of them; labels_missing, which never come, and labels_late, which come after the end;
    examples_unused, rows that have not come; clients_without_examples, to whom nothing came; clients_exhausted, whose rows
    were used up before the last round.
    """
    counts = stream.counts(rounds)
    arrived, known = int(counts.sum()), int(stream.label_counts(rounds).sum())
    missing = int(stream.missing_counts(rounds).sum())
    return {
        "examples_arrived": arrived,
        "labels_known": known,
        "labels_missing": missing,
        "labels_late": arrived - known - missing,
        "examples_unused": int((stream.sizes - np.minimum(counts, stream.sizes)).sum()),
        "clients_without_examples": int((counts == 0).sum()),
        "clients_exhausted": int((stream.exhausted(rounds - 1) & (stream.sizes > 0)).sum()),
    }


def warnings(stream: Stream, rounds: int, quality: Quality | None = None) -> list[str]:
    """A sentence for each thing that a user should know before a run of so many rounds. quality: what is done about labels."""
    quality = quality or Quality()
    counts, number = stream.counts(rounds), len(stream.sizes)
    said = []
    if short := int((stream.exhausted(rounds - 1) & (stream.sizes > 0)).sum()):
        said.append(
            f"the rows of {short} of {number} clients are used up before round {rounds}, and nothing comes to them after that; "
            "lower streams.rate or rounds, or set streams.repeat=true"
        )
    if idle := int((counts == 0).sum()):
        said.append(
            f"nothing ever comes to {idle} of {number} clients in {rounds} rounds; raise streams.rate, or lower streams.start, "
            "streams.join or streams.spread"
        )
    if quality.unlabelled.guesses:
        return said
    if quality.labels.asks and (bought := quality.labels.budget * counts.max(initial=0)) < 1:
        said.append(
            f"labels.budget={quality.labels.budget:g} of what comes in {rounds} rounds is {bought:.2g} labels for the "
            "client to whom most comes, so that hardly anybody can train; raise labels.budget, streams.rate or rounds"
        )
    if counts.any() and not stream.label_counts(rounds).any():
        said.append(
            f"no label comes in {rounds} rounds, so that nobody can train; lower streams.label_delay or streams.label_missing"
        )
    return said
