"""What a run would have taken in the field and who took part in it, in sentences and tables; nothing where it was not modelled."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.results.devices import Devices, devices_of, dispatches_of
from fedsim.results.finished import Run
from fedsim.results.formats import DASH, bytes_text, count_text, known, percent, tenth_text
from fedsim.results.pictures.classes import class_names
from fedsim.results.units import carbon_text, energy_text, time_text, watt_hours_text

UNEVEN = 0.05
"""Difference of two shares from which it is told."""
BYTES_A_PARAMETER = 4
LOST = {
    "late": "came too late",
    "network": "lost the connection",
    "battery": "ran out of battery",
    "user": "was needed by its user",
    "failed": "failed",
}
"""What became of a client whose work was not used."""


def field_story(run: Run) -> str | None:
    """The sentence after the story: what the field would have paid, and whom the model does not reach."""
    costs = _costs(run.summary)
    if not costs:
        return None
    devices = devices_of(run)
    out = f"; {_never(run, devices)}" if devices is not None and devices.unfit.any() else ""
    return f"In the field this run would have taken {_listed(costs)}{out}."


def _costs(summary: dict[str, Any]) -> list[str]:
    """Time, energy with its carbon, and bytes, those that are known; none where neither time nor energy is modelled."""
    costs = []
    if known(seconds := summary.get("simulated_seconds")):
        costs.append(time_text(seconds))
    if known(joules := summary.get("joules")):
        carbon = f" ({carbon_text(summary['grams_co2'])})" if known(summary.get("grams_co2")) else ""
        costs.append(f"{energy_text(joules)}{carbon}")
    up, down = summary.get("bytes_up"), summary.get("bytes_down")
    return [*costs, bytes_text(up + down)] if costs and known(up) and known(down) else costs


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _never(run: Run, devices: Devices) -> str:
    """Whom the model does not fit, and what they hold."""
    count, clients = int(devices.unfit.sum()), len(devices.unfit)
    one = count == 1
    who = f"{count_text(count)} of {count_text(clients)} clients can never take part because the model does not fit"
    share = devices.share(devices.unfit, devices.examples)
    if not known(share):
        return who
    return f"{who}, and {'it holds' if one else 'they hold'} {percent(share)} of the examples{_worst_class(run, devices, share)}"


def _worst_class(run: Run, devices: Devices, share: float) -> str:
    """The class of which they hold the largest share, where that is well above their share of all examples."""
    shares = devices.class_shares(run, devices.unfit)
    if shares is None or not np.isfinite(shares).any():
        return ""
    label = int(np.nanargmax(shares))
    return f" ({percent(shares[label])} of class {class_names(run)[label]})" if shares[label] >= share + UNEVEN else ""


def field_words(run: Run) -> list[str]:
    """Sentences on why work was lost, who never trained the model, whose data count less, and how old updates were."""
    devices = devices_of(run)
    sentences = [_lost(run, devices), _stale(run)]
    if devices is not None:
        sentences += [_idle(devices), _uneven(devices)]
    return [one for one in sentences if one]


def _lost(run: Run, devices: Devices | None) -> str | None:
    counted = (run.summary.get("fleet") or {}).get("dropouts")
    if not isinstance(counted, dict) or not all(known(value) for value in counted.values()):
        return None
    lost = {cause: int(value) for cause, value in counted.items() if value and cause != "away"}
    total, away = sum(lost.values()), int(counted.get("away") or 0)
    used = 0 if devices is None else int(devices.participations.sum())
    if total == 0:
        return f"The work of every device that was sent the model was used{_away(away)}." if used else None
    of = (
        f"Of {count_text(used + total)} times that a client was sent the model, its work was not used" if used else None
    )
    start = f"{of} {count_text(total)} times" if of else f"The work of a client was not used {count_text(total)} times"
    causes = sorted(lost, key=lambda cause: -lost[cause])
    return (
        f"{start}: it {_listed([f'{LOST.get(cause, cause)} {_times(lost[cause])}' for cause in causes])}{_away(away)}."
    )


def _away(count: int) -> str:
    return f"; {_times(count)} a client was drawn that was not there" if count else ""


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count_text(count)} times")


def _stale(run: Run) -> str | None:
    _, staleness = run.curve("mean_staleness")
    if len(staleness) == 0 or staleness.max() <= 0:
        return None
    return (
        f"Updates were {tenth_text(float(staleness.mean()))} rounds old on average when they were used, "
        f"{tenth_text(float(staleness.max()))} in the round of the oldest."
    )


def _idle(devices: Devices) -> str | None:
    """Those who could have trained the model and never did."""
    idle = devices.idle
    if not idle.any():
        return None
    asked, count = int((idle & (devices.dropouts > 0)).sum()), int(idle.sum())
    holds = percent(devices.share(idle, devices.examples))
    why = [f"{count_text(asked)} drawn, but late, lost or not there each time"] if asked else []
    why += [f"{count_text(count - asked)} never drawn"] if asked < count else []
    clients = f"{count_text(count)} {'client' if count == 1 else 'clients'}"
    return f"{clients} whom the model fits never trained it ({holds} of the examples): {_listed(why)}."


def _uneven(devices: Devices) -> str | None:
    """The kind of device whose share of the participations is the farthest from its share of the examples."""
    if len(devices.kinds) < 2 or devices.participations.sum() == 0:
        return None
    shares = [
        [devices.share(devices.kind == kind, of) for of in (devices.examples, devices.participations)]
        for kind in range(len(devices.kinds))
    ]
    gaps = [abs(took - held) for held, took in shares]
    at = int(np.nanargmax(gaps)) if np.isfinite(gaps).any() else 0
    if not gaps[at] >= UNEVEN:
        return None
    held, took = shares[at]
    return (
        f"Devices of the kind {devices.kinds[at]} hold {percent(held)} of the examples and have {percent(took)} of the "
        "participations."
    )


def by_kind(run: Run) -> list[tuple[str, ...]]:
    """A row a kind of device; empty where none were modelled. The columns are those of KIND_COLUMNS."""
    devices = devices_of(run)
    if devices is None:
        return []
    rows: list[tuple[str, ...]] = []
    for kind, name in enumerate(devices.kinds):
        mine = devices.kind == kind
        energy, busy = (_mean(run.client(column)[mine]) for column in ("joules", "busy_seconds"))
        rows.append(
            (
                name,
                count_text(int(mine.sum())),
                count_text(int((mine & devices.unfit).sum())),
                percent(devices.share(mine, devices.examples)),
                percent(devices.share(mine, devices.participations)),
                count_text(int(devices.dropouts[mine].sum())),
                time_text(busy),
                energy_text(energy),
            )
        )
    return rows


KIND_COLUMNS = (
    *("Kind of device", "Clients", "Model does not fit", "Examples", "Participations", "Dropouts"),
    *("Mean time at work", "Mean energy"),
)


def _mean(values: np.ndarray) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def cost_rows(run: Run) -> list[tuple[str, str]]:
    """Rows of the costs' table: simulated time, energy and carbon of all devices, compression; those alone that are modelled."""
    summary = run.summary
    rows: list[tuple[str, str]] = []
    if known(seconds := summary.get("simulated_seconds")):
        rows.append(("Simulated time, whole run", time_text(seconds)))
        _, lasted = run.curve("simulated_seconds")
        if len(lasted):
            rows.append(("Simulated time, a round at the median", time_text(float(np.median(lasted)))))
    if known(joules := summary.get("joules")):
        rows.append(("Energy of all devices", f"{energy_text(joules)} ({watt_hours_text(joules)})"))
    if known(grams := summary.get("grams_co2")):
        rows.append(("Carbon of that energy", carbon_text(grams)))
    return [*rows, ("Compression of updates", _compressed(run))] if compression_of(summary) else rows


def compression_of(summary: dict[str, Any]) -> str | None:
    """What messages are compressed by; None where they are not."""
    name = summary.get("compression")
    return name if isinstance(name, str) and name not in ("", "none") else None


def _compressed(run: Run) -> str:
    """The compression, and how much smaller it made an update than its parameters as 32-bit numbers are."""
    name, parameters, sent = (
        compression_of(run.summary) or DASH,
        run.summary.get("num_parameters"),
        _bytes_of_update(run),
    )
    if not known(parameters) or not sent:
        return name
    whole = BYTES_A_PARAMETER * parameters
    saved = f"{percent(1 - sent / whole)} less than" if sent < whole else "no less than"
    return f"{name}: {bytes_text(sent)} an update, {saved} its {bytes_text(whole)} of 32-bit numbers"


def _bytes_of_update(run: Run) -> float | None:
    """Of an update that was used, on average; None where that cannot be told."""
    dispatches = dispatches_of(run)
    if dispatches is not None and np.nansum(run.client("dropouts")) > 0:  # then bytes up hold what was lost on the way
        sent = dispatches.bytes_up[(dispatches.outcome == "used") & np.isfinite(dispatches.bytes_up)]
        return float(sent.mean()) if len(sent) else None
    updates, total = np.nansum(run.client("participations")), run.summary.get("bytes_up")
    return float(total / updates) if known(total) and updates > 0 else None


def tile(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the headline; none where time was not modelled."""
    if not known(seconds := summary.get("simulated_seconds")):
        return []
    paid = [energy_text(summary["joules"])] if known(summary.get("joules")) else []
    paid += [carbon_text(summary["grams_co2"])] if known(summary.get("grams_co2")) else []
    return [("Time in the field", time_text(seconds), ", ".join(paid) or "simulated")]
