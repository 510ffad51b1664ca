"""The table of an export: on the terminal, and in export.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedsim.results.formats import DASH, bytes_text, count_text, known, number_text, percent

if TYPE_CHECKING:
    from rich.table import Table

Rows = list[tuple[str, ...]]
FIRST = 12
"""Classes whose names the page lists."""


def file_rows(told: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    """Headings, and a row a file. A latency is milliseconds an example: the median, and the 95th percentile in brackets."""
    classes = told["accuracy"] is not None
    size = told["files"][0]["batch"]["size"]
    quality = ("accuracy", "points lost") if classes else ("squared error", "more by")
    headings = ("file", "size", "gzip", *quality, "online, ms", f"batch of {size}, ms each")
    rows: Rows = []
    for one in told["files"]:
        judged = (
            (percent(one["accuracy"]), _points(one["points_lost"]))
            if classes
            else (number_text(one["loss"]), _more(one["loss"], told["loss"]))
        )
        sizes = (bytes_text(one["bytes"]), bytes_text(one["bytes_gzip"]))
        name = f"{one['file']} (PyTorch)" if one["runtime"] == "PyTorch" else one["file"]
        rows.append((name, *sizes, *judged, _times(one["online"]), _times(one["batch"])))
    return headings, rows


def estimate_rows(told: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    """Headings, and a row a kind of device; no rows where no fleet has a speed."""
    networks = list(told["flops_per_example"])
    rows = []
    for one in told["estimates"]:
        times = (_milliseconds(1e3 * one["seconds"][name]) for name in networks)
        rows.append((one["kind"], ", ".join(one["fleets"]), number_text(one["flops_per_second"] / 1e9), *times))
    return ("device", "in fleet=", "GFLOP/s", *(f"{name}.onnx, ms" for name in networks)), rows


def notes(told: dict[str, Any]) -> list[str]:
    """What the tables do not say, in sentences."""
    own = (
        f"accuracy {percent(told['accuracy'])}"
        if told["accuracy"] is not None
        else f"squared error {number_text(told['loss'])}"
    )
    lines = [
        f"The run's own model, {told['model']} with {count_text(told['parameters'])} parameters, has {own} on "
        f"{count_text(told['test_rows'])} test rows.",
        f"Input `{told['input']['name']}`: {told['input']['type']} {_shape(told['input'])}, raw; preprocessing "
        f"({told['preprocessing']}) is in the file. Output "
        + " and ".join(f"`{one['name']}` {_shape(one)}" for one in told["outputs"])
        + ".",
    ]
    for one in told["files"]:
        if "why" in one:
            lines.append(f"{one['file']}: {one['method']} quantisation, since {one['why']}.")
        elif one["precision"] == "float16":
            lines.append(f"{one['file']}: {one['method']}.")
        if known(one.get("accuracy_of_other_rows")):
            lines.append(
                f"{one['file']}: accuracy {percent(one['accuracy_of_other_rows'])} on the test rows that did not calibrate."
            )
    lines += [f"{name} is left out: {why}." for name, why in told["left_out"].items()]
    if found := told["pruning"]:
        lines.append(
            f"Pruned: {count_text(found['zero'])} of {count_text(found['weights'])} weights are zero, the smallest of all; "
            "zeros are stored and multiplied like any number, and only compression (gzip) makes the file smaller."
        )
    if found := told["distillation"]:
        lines.append(
            f"Distilled: a student ({_words(found['student'])}) of {count_text(found['parameters'])} parameters learnt from the "
            f"model's outputs at temperature {found['temperature']:g} on {count_text(found['rows'])} training rows, which only a "
            "simulation has in one place."
        )
    return lines + told["privacy"]


def measured(told: dict[str, Any]) -> str:
    """What the latencies are of."""
    machine = told["machine"]
    return (
        f"Latencies on one thread of {machine['cpu']} ({machine['cores']} cores): the median, and the 95th percentile in brackets; "
        "online is one example at a time."
    )


def markdown(told: dict[str, Any]) -> str:
    """The page export.md."""
    lines = [f"# {told['experiment']}: files for the device", ""]
    lines += _pipes(*file_rows(told))
    lines += ["", measured(told), ""]
    lines += [f"- {line}" for line in notes(told)]
    if names := told["classes"]:
        more = f" and {len(names) - FIRST} more" if len(names) > FIRST else ""
        lines.append(f"- Classes, in order: {', '.join(repr(name) for name in names[:FIRST])}{more}.")
    headings, rows = estimate_rows(told)
    if rows:
        lines += ["", "## Estimated on devices of conf/fleet", "", *_pipes(headings, rows), "", estimate_words(told)]
    return "\n".join(lines) + "\n"


def estimate_words(told: dict[str, Any]) -> str:
    """What the estimate is."""
    flops = ", ".join(f"{count_text(value)} for {name}" for name, value in told["flops_per_example"].items())
    return f"Operations of one example, counted ({flops}), over the device's speed: the arithmetic alone, and so a lower bound."


def tables(told: dict[str, Any]) -> list[Table]:
    """For the terminal."""
    headings, rows = estimate_rows(told)
    return [_table(*file_rows(told)), *([_table(headings, rows)] if rows else [])]


def _table(headings: Sequence[str], rows: Rows) -> Table:
    from rich.table import Table

    made = Table(*headings, show_edge=False)
    made.columns[0].no_wrap = True
    for column, values in zip(made.columns, zip(*rows, strict=True), strict=True):
        if any(value[:1].isdigit() for value in values):
            column.justify = "right"
    for row in rows:
        made.add_row(*row)
    return made


def _pipes(headings: Sequence[str], rows: Rows) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (headings, ["---"] * len(headings), *rows)]


def _points(value: Any) -> str:
    return f"{value:.1f}".replace("-0.0", "0.0") if known(value) else DASH


def _more(value: Any, before: Any) -> str:
    return (
        f"{100 * (value / before - 1):.1f}%".replace("-0.0", "0.0")
        if known(value) and known(before) and before
        else DASH
    )


def _times(found: dict[str, Any]) -> str:
    return f"{_milliseconds(found['median'])} ({_milliseconds(found['p95'])})"


def _milliseconds(value: float) -> str:
    return f"{value:.3g}"


def _shape(value: dict[str, Any]) -> str:
    return f"({', '.join(map(str, value['shape']))})"


def _words(part: dict[str, Any]) -> str:
    """A part of the configuration in a few words."""
    name = str(part["_target_"]).rpartition(".")[2]
    return ", ".join([name, *(f"{key}={value}" for key, value in part.items() if not key.startswith("_"))])
