"""What a report says of labels that were bought, guessed or doubted on devices, and of input values that were missing."""

from __future__ import annotations

from typing import Any

from fedsim.results.formats import count_text, known, percent


def came_words(told: dict[str, Any]) -> str:
    """What came, and what became of its labels. told: `streams` of summary.json."""
    came = told["examples_arrived"]
    if "labels_asked" not in told:
        return (
            f"{count_text(came)} examples came, each judged before it was learnt from; the labels of "
            f"{count_text(told['labels_known'])} came by the end, {count_text(told['labels_late'])} were still to come and "
            f"{count_text(told['labels_missing'])} never do."
        )
    vain = told["labels_asked"] - told["labels_known"]
    return (
        f"{count_text(came)} examples came, each judged before it was learnt from; clients bought the labels of "
        f"{count_text(told['labels_asked'])} ({_share(told['labels_asked'], came)}), chosen by {told['labels']} on a budget of "
        f"{percent(told['label_budget'])}{f', {count_text(vain)} of them in vain' if vain else ''}."
    )


def label_words(told: dict[str, Any]) -> list[str]:
    """Sentences about guesses and about cleaning; none where there were neither."""
    said = []
    if made := told.get("labels_guessed"):
        said.append(
            f"{count_text(made)} rows without a label were learnt with a guess ({told['unlabelled'].replace('_', ' ')}), "
            f"{_share(told['guesses_right'], made)} of which {'was' if made == 1 else 'were'} right."
        )
    elif "labels_guessed" in told:
        said.append("No row without a label got a guess.")
    if known(told.get("rows_cleaned")):
        said.append(_cleaning_words(told["rows_cleaned"], told["rows_cleaned_wrong"], told["rows_wrong"]))
    elif "rows_cleaned" in told:
        said.append("What cleaning left out is not told: under a promise of privacy no number goes beside an update.")
    return said


def missing_words(summary: dict[str, Any]) -> str | None:
    """Which input values were missing, and what filled them; None where none were, or the configuration is not told."""
    spoilt = (summary.get("config") or {}).get("corruption") or {}
    if not spoilt.get("missing"):
        return None
    what = "sensors" if spoilt.get("missing_kind") == "sensors" else "input values"
    whose = (
        "every client" if spoilt.get("noisy_clients", 1) == 1 else f"{percent(spoilt['noisy_clients'])} of the clients"
    )
    filled = "the client's own mean" if spoilt.get("imputation") == "mean" else "0, the mean of the dataset"
    marked = ", and marked as missing" if spoilt.get("indicator") else ""
    return f"{percent(spoilt['missing'])} of the {what} of {whose}, filled with {filled}{marked}"


def _cleaning_words(left_out: int, right: int, wrong: int) -> str:
    if not left_out:
        return "Cleaning left no row out."
    words = f"Cleaning left out {count_text(left_out)} rows, counted anew in each round"
    if not wrong:
        return f"{words}, though no label was wrong."
    return f"{words}: {_share(right, left_out)} of them had a wrong label, {_share(right, wrong)} of all wrong labels were found."


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if whole else "none"
