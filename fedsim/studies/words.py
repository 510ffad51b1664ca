"""What a study found, in sentences: what varied, what won and by how much, and whether the seeds are enough to say so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedsim.results.formats import DASH, count_text, known
from fedsim.studies.comparisons import Tested, against_best, between_values, extremes
from fedsim.studies.names import Measure, value_text
from fedsim.studies.study import Study
from fedsim.studies.varied import Axis


def p_text(p: float) -> str:
    """A p-value: `0.013`, `< 0.001`."""
    return DASH if not math.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def interval_text(measure: Measure, mean: Any, low: Any, high: Any) -> str:
    """`91.2% (95% interval 90.8% to 91.6%)`, without the interval where there is none."""
    if not (known(low) and known(high)):
        return measure.show(mean)
    return f"{measure.show(mean)} (95% interval {measure.show(low)} to {measure.show(high)})"


def plus_minus(measure: Measure, mean: Any, low: Any, high: Any) -> str:
    """`91.2 ± 0.4%`, `0.3931 ± 0.01`; the mean alone where there is no interval."""
    if not known(mean) or not (known(low) and known(high)):
        return measure.show(mean)
    half = (high - low) / 2
    if half <= 1e-9 * abs(mean):
        return measure.show(mean)  # what depends on no seed needs no interval
    if measure.is_share:
        return f"{100 * mean:.1f} ± {100 * half:.1f}%"
    return f"{measure.show(mean)} ± {measure.show(float(f'{half:.2g}'))}"


def gap_text(measure: Measure, one: Tested, sign: bool = False) -> str:
    """`2.1 points (95% interval 1.2 to 3.0)`."""
    found = one.found
    text = measure.difference(found.difference, sign)
    if not known(found.low):
        return text
    low, high = (_bare(measure, value, sign) for value in (found.low, found.high))
    return f"{text} (95% interval {low} to {high})"


def _bare(measure: Measure, value: float, sign: bool) -> str:
    text = measure.difference(value, True).removesuffix(" points")
    return text if sign else text.removeprefix("+")


def story(study: Study) -> str:
    """The first sentence of the report: the answer."""
    ranking, measure = study.ranking(), study.measure
    if not ranking:
        return f"{_what_ran(study)}: no run has a {measure.label}, so none can be said to be the best."
    best = ranking[0]
    mean, low, high = (float(study.statistic(measure, name)[best]) for name in ("mean", "low", "high"))
    reached = f"{measure.label} {interval_text(measure, mean, low, high)}"
    if len(study.cells) == 1:
        return f"{_what_ran(study)}: {reached}{_spread(study, best)}."
    won = f"{study.label(best)} has the best {reached}"
    if study.seeds[best] > 1 and math.isnan(low):
        won += f" (measured in {count_text(study.statistic(measure, 'n')[best])} run)"
    return f"{_what_ran(study)}: {won}{_ahead(study)}."


def _spread(study: Study, cell: int) -> str:
    values = study.runs.loc[study.runs["cell"] == cell, study.measure.name].dropna()
    if len(values) < 2:
        return "; one seed gives no interval, and another may well give another result"
    return f", the runs between {study.measure.show(values.min())} and {study.measure.show(values.max())}"


def _what_ran(study: Study) -> str:
    runs, cells = len(study.runs), len(study.cells)
    if cells == 1:
        return f"{count_text(runs)} run{'s' if runs > 1 else ''} of one configuration"
    counts = [f"{len(axis.values)} {_plural(axis)}" for axis in study.axes[:4]]
    more = [f"{len(study.axes) - 4} more keys"] if len(study.axes) > 4 else []
    grid = math.prod(len(axis.values) for axis in study.axes) == cells
    what = " × ".join(counts + more) if grid else f"{count_text(cells)} combinations of {_listed(counts + more)}"
    return f"{what}, {_seeds(study)}"


def _plural(axis: Axis) -> str:
    if axis.key == "population.num_clients":
        return "numbers of clients"
    if axis.numeric or len(axis.label.split()) > 1 or axis.label.endswith("s"):
        return f"values of {axis.label}"
    return "strategies" if axis.label == "strategy" else f"{axis.label}s"


def _seeds(study: Study) -> str:
    least, most = int(study.seeds.min()), study.most_seeds
    if most == 1:
        return "one seed each"
    return f"{least} seeds each" if least == most else f"{least} to {most} seeds each"


def _ahead(study: Study) -> str:
    """By how much the best is ahead of the next, and whether that can be told from chance."""
    tests = against_best(study)
    if not tests:
        return "; no other cell was measured"
    sign = 1 if study.measure.higher else -1
    next_one = tests[0]
    if not known(next_one.found.difference):
        mean = study.statistic(study.measure, "mean")
        gap = study.measure.difference(sign * float(mean[next_one.first] - mean[next_one.second]), sign=False)
        return f", {gap} ahead of {study.label(next_one.second)}; they have no seed in common to compare them by"
    turned = next_one._replace(found=_times(next_one, sign))
    ahead = f", {gap_text(study.measure, turned)} ahead of {study.label(next_one.second)}"
    if study.most_seeds == 1:
        return f"{ahead}; with one seed there is no interval, and a difference may be chance"
    open_ones = [one for one in tests if not one.settled]
    if not open_ones:
        return f"{ahead}; the seeds suffice to tell it from every other (paired t-tests, Holm)"
    return f"{ahead}; {_words(study.most_seeds)} seeds do not suffice to tell it from {_some(study, open_ones)}"


def _times(one: Tested, sign: int) -> Any:
    found = one.found
    if sign > 0:
        return found
    return found._replace(difference=-found.difference, low=-found.high, high=-found.low)


def _some(study: Study, tests: list[Tested]) -> str:
    if len(tests) <= 2:
        return " or ".join(study.label(one.second) for one in tests)
    others = len(study.ranking()) - 1
    return f"any of the {others} others" if len(tests) == others else f"{len(tests)} of the {others} others"


def _words(number: int) -> str:
    return (
        ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")[number]
        if number < 10
        else str(number)
    )


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def findings(study: Study) -> list[str]:
    """What each axis did, averaged over the others; then how one of two numeric axes acts at the ends of the other."""
    if len(study.cells) < 2:
        return []
    found = [words for axis in study.numeric if (words := _trend(study, axis))]
    found += [words for axis in study.categorical if (words := _choice(study, axis))]
    return found + _crossed(study)


def _trend(study: Study, axis: Axis) -> str | None:
    one = extremes(study, axis)
    if one is None or not known(one.found.difference):
        return None
    measure = study.measure
    verdict = _verdict(one)
    averaged = ", averaged over what else varied" if len(study.axes) > 1 else ""
    return (
        f"From {axis.phrase(one.second)} to {axis.phrase(one.first)} {measure.label} changes by "
        f"{gap_text(measure, one, sign=True)}{averaged}{verdict}."
    )


def _verdict(one: Tested) -> str:
    if not known(one.p_t):
        return ""
    return f"; paired t-test p = {p_text(one.p_t)}".replace("= <", "<") + (
        "" if one.settled else ", which may be chance"
    )


def _choice(study: Study, axis: Axis) -> str | None:
    tests = [one for one in between_values(study, axis) if known(one.found.difference)]
    if not tests:
        return None
    settled = [one for one in tests if one.settled]
    if not settled:
        why = "one seed each" if study.most_seeds == 1 else f"{_words(study.most_seeds)} seeds"
        if len(axis.values) == 2:
            return f"The two {_plural(axis)} cannot be told apart by {why}."
        return f"No two of the {len(axis.values)} {_plural(axis)} can be told apart by {why}."
    widest = max(settled, key=lambda one: abs(one.found.difference))
    better = (widest.found.difference > 0) == bool(study.measure.higher)
    first, second = (widest.first, widest.second) if better else (widest.second, widest.first)
    size = study.measure.difference(abs(widest.found.difference), sign=False)
    return (
        f"{len(settled)} of {len(tests)} pairs of {_plural(axis)} can be told apart; the widest: {axis.phrase(first)} is "
        f"{size} better than {axis.phrase(second)} (p {_p(widest.p_t)})."
    )


def _p(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _crossed(study: Study) -> list[str]:
    """Of exactly two numeric axes: the first axis' ends at the lowest and the highest value of the second."""
    if len(study.axes) != 2 or len(study.numeric) != 2:
        return []
    first, second = study.numeric
    words = []
    for at in (second.known[0], second.known[-1]):
        ends = []
        for value in (first.known[0], first.known[-1]):
            cell = cell_at(study, {first.key: value, second.key: at})
            if cell is None:
                break
            mean, low, high = (float(study.statistic(study.measure, name)[cell]) for name in ("mean", "low", "high"))
            if not known(mean):
                break
            ends.append(f"{plus_minus(study.measure, mean, low, high)} with {first.phrase(value)}")
        if len(ends) == 2:
            words.append(f"At {second.phrase(at)}: {ends[0]}, {ends[1]}.")
    return words


def cell_at(study: Study, values: dict[str, Any]) -> int | None:
    """The first cell with these values of axes."""
    held = np.ones(len(study.cells), dtype=bool)
    for key, value in values.items():
        column = study.cells[key]
        held &= (column.isna() if value is None else column == value).to_numpy()
    found = study.cells.index[held]
    return int(found[0]) if len(found) else None


def notes(study: Study) -> list[str]:
    """What a reader must know before believing the page: mixed experiments, one seed, missing numbers, repeated seeds."""
    told = []
    mixed = study.axis("name")
    if mixed is not None:
        told.append(
            f"These runs are of {len(mixed.values)} experiments ({_listed([value_text(value) for value in mixed.values[:8]])}); "
            "they are grouped by experiment, and what differs between experiments is not the effect of one key."
        )
    least, most = int(study.seeds.min()), study.most_seeds
    if len(study.runs) == 1:
        told.append("This is one run: there is nothing to compare it with, and a single seed has no interval.")
    elif most == 1:
        told.append(
            "Each configuration was run with one seed, so there are no intervals and no tests; sweep seed=0,1,2 for them."
        )
    elif least < most:
        some = int((study.seeds == 1).sum())
        told.append(
            f"Cells have between {least} and {most} seeds" + ("; those with one have no interval." if some else ".")
        )
    unmeasured = int((study.statistic(study.measure, "n") < study.seeds).sum())
    if unmeasured:
        told.append(
            f"In {unmeasured} of {len(study.cells)} cells a run lacks its {study.measure.label}; means are over the others."
        )
    if study.repeated:
        told.append(
            f"{study.repeated} runs repeat the seed of another of their cell; such runs are averaged and count once."
        )
    if 2 <= most < 6 and len(study.cells) > 1:
        told.append(
            f"With {_words(most)} seeds a Wilcoxon test cannot give a p below {p_text(2 / 2**most)}, whatever the data; "
            "the t-test takes differences between seeds to be normally distributed."
        )
    return told
